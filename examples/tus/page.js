// An upload by tus-js-client, as its documentation has it; nothing of it is Backlot's own.
import { Upload } from "tus-js-client";

const form = document.querySelector("form");
const progress = document.querySelector("progress");
const output = document.querySelector("output");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { server, token, title, file } = Object.fromEntries(new FormData(form));
  const upload = new Upload(file, {
    endpoint: new URL("/tus/uploads", server).href,
    headers: { Authorization: `Bearer ${token}` },
    metadata: { filename: file.name, filetype: file.type, title },
    retryDelays: [0, 1000, 3000, 5000],
    removeFingerprintOnSuccess: true,
    onProgress: (sent, all) => (progress.value = sent / all),
    onError: (error) => (output.value = error.message),
    // The upload's id is the video's.
    onSuccess: () => (output.value = `done: ${upload.url.split("/").pop()}`),
  });
  // Where this browser sent the same file before, it goes on from what has arrived.
  const [former] = await upload.findPreviousUploads();
  if (former) upload.resumeFromPreviousUpload(former);
  output.value = former ? "resuming" : "sending";
  upload.start();
});
