/**
 * What a platform does with a film, by the generated client: upload, like, comment, read.
 *
 *     BACKLOT_URL=http://127.0.0.1:8000 BACKLOT_TOKEN=… node build/examples/main_job.js film.mp4
 *
 * Prints what was read, as one line of JSON.
 */
import { readFile } from 'node:fs/promises';

import { createClient } from '../src/generated/client/index.js';
import {
  completeUpload,
  getUpload,
  getVideo,
  getVideoStats,
  likeVideo,
  listComments,
  postComment,
  startUpload,
} from '../src/generated/sdk.gen.js';

function required(name: string): string {
  const value = process.env[name];
  if (value === undefined) {
    throw new Error(`${name} is not set`);
  }
  return value;
}

const client = createClient({
  auth: () => required('BACKLOT_TOKEN'),
  baseUrl: required('BACKLOT_URL'),
  // What is refused is thrown: the `ProblemDetails` of the answer.
  throwOnError: true,
});

async function upload(path: string): Promise<string> {
  const film = await readFile(path);
  const { data: begun } = await startUpload({
    client,
    throwOnError: true,
    body: {
      title: 'Rain',
      filename: 'rain.mp4',
      contentType: 'video/mp4',
      sizeBytes: film.length,
    },
    headers: { 'Idempotency-Key': crypto.randomUUID() },
  });
  for (const { number, url } of begun.parts) {
    const first = (number - 1) * begun.partSizeBytes;
    const body = film.subarray(first, first + begun.partSizeBytes);
    const sent = await fetch(url, { method: 'PUT', body });
    if (!sent.ok) {
      throw new Error(`part ${number}: ${sent.status} ${await sent.text()}`);
    }
  }
  // Without a body: of all parts that have arrived.
  await completeUpload({ client, throwOnError: true, path: { upload_id: begun.uploadId } });
  const { data: found } = await getUpload({
    client,
    throwOnError: true,
    path: { upload_id: begun.uploadId },
  });
  if (found.status !== 'completed') {
    throw new Error(`the upload is ${found.status}`);
  }
  return begun.videoId;
}

const path = { video_id: await upload(process.argv[2] ?? 'film.mp4') };
const { data: liked } = await likeVideo({ client, throwOnError: true, path });
const { response } = await postComment({
  client,
  throwOnError: true,
  path,
  body: { content: 'Nice rain' },
});
const { data: video } = await getVideo({ client, throwOnError: true, path });
const { data: comments } = await listComments({ client, throwOnError: true, path });
// Stats are counted a moment later: this asks for those that have what was done above.
const position = response.headers.get('Backlot-Position') ?? '';
const { data: stats } = await getVideoStats({
  client,
  throwOnError: true,
  path,
  headers: { 'Backlot-Min-Position': position, 'Backlot-Timeout-Ms': 30_000 },
});
// What no client expects of an unknown video is typed, too.
const { error: problem } = await getVideo({
  client,
  throwOnError: false,
  path: { video_id: crypto.randomUUID() },
});
console.log(
  JSON.stringify({
    status: video.status,
    hasLiked: liked.hasLiked,
    likes: video.likes,
    comments: comments.items.map((comment) => comment.content),
    likesInStats: stats.totals.likes,
    problem: problem?.type,
  }),
);
