import AwsS3 from "@uppy/aws-s3";
import Uppy from "@uppy/core";
import { Backlot } from "./backlot.js";

const form = document.querySelector("form");
const progress = document.querySelector("progress");
const output = document.querySelector("output");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { server, token, title, file } = Object.fromEntries(new FormData(form));
  const backlot = new Backlot(server.replace(/\/$/, ""), token);
  const uppy = new Uppy().use(AwsS3, {
    shouldUseMultipart: true,
    getChunkSize: backlot.getChunkSize,
    signRequest: backlot.signRequest,
  });
  // Uppy goes on with an upload that it finds here: it lists the parts, and sends the others.
  uppy.addPreProcessor(async (ids) => {
    for (const each of uppy.getFilesByIds(ids)) {
      uppy.setFileState(each.id, { s3Multipart: await backlot.begin(each, { title }) });
    }
  });
  uppy.on("upload-progress", (_, { bytesUploaded, bytesTotal }) => {
    progress.value = bytesUploaded / bytesTotal;
  });
  uppy.on("error", (error) => (output.value = error.message));
  uppy.addFile({ name: file.name, type: file.type, data: file });
  output.value = "sending";
  const { successful } = await uppy.upload();
  // What Uppy calls the location is the video.
  if (successful.length) output.value = `done: ${successful[0].uploadURL.split("/").pop()}`;
});
