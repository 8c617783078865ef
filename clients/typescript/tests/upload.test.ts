import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createReadStream } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { watchVideo } from '../src/generated/sdk.gen.js';
import { streamSource, type Backlot, type Source } from '../src/index.js';
import { fileSource } from '../src/node.js';
import { answered, clientOf, DETAILS, film, isPart, lost, Network } from './support.js';

// What the program of the tests has as the size of a part.
const PART = 16 * 1024;
const BYTES = film(9 * PART + 5);
const PARTS = 10;

async function stored(client: Backlot, videoId: string): Promise<Uint8Array> {
  const path = { video_id: videoId };
  const { data } = await watchVideo({ client: client.client, throwOnError: true, path });
  return new Uint8Array(await (await fetch(data.url)).arrayBuffer());
}

async function inFile(work: (path: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'backlot-'));
  try {
    await writeFile(join(folder, 'film.mp4'), BYTES);
    await work(join(folder, 'film.mp4'));
  } finally {
    await rm(folder, { recursive: true });
  }
}

test('parts go side by side, not more than wanted, and progress is told', async () => {
  let [under, most] = [0, 0];
  const told: number[] = [];
  const waiting: (() => void)[] = [];
  const alice = clientOf('alice', {
    fetch: async (request) => {
      if (!isPart(request)) {
        return fetch(request);
      }
      most = Math.max(most, (under += 1));
      // The first three wait for each other: they are sent at once, or never.
      if (waiting.length < 3) {
        await new Promise<void>((resolve) => {
          waiting.push(resolve);
          if (waiting.length === 3) {
            waiting.forEach((go) => go());
          }
        });
      }
      const answer = await fetch(request);
      under -= 1;
      return answer;
    },
  });
  const onProgress = (sent: number): number => told.push(sent);
  const options = { ...DETAILS, parallel: 3, onProgress };
  const { videoId, sentParts } = await alice.upload(new File([BYTES], 'rain.mp4'), options);
  assert.deepEqual([most, sentParts], [3, PARTS]);
  assert.deepEqual([told[0], told.at(-1), told.length], [0, BYTES.length, PARTS + 1]);
  assert.deepEqual(await stored(alice, videoId), BYTES);
});

/** Begin an upload whose network ends after some parts; return its id and how many arrived. */
async function interrupted(source: Blob | Source): Promise<[string, number]> {
  let [uploadId, arrived] = ['', 0];
  const alice = clientOf('alice', {
    retries: { attempts: 2, firstPauseMs: 1 },
    fetch: async (request) => {
      if (isPart(request) && arrived === 4) {
        throw new TypeError('the network is gone');
      }
      const answer = await fetch(request);
      arrived += isPart(request) ? 1 : 0;
      return answer;
    },
  });
  const onStart = (id: string): string => (uploadId = id);
  const begun = alice.upload(source, { ...DETAILS, parallel: 1, onStart });
  await assert.rejects(begun, /the network is gone/);
  return [uploadId, arrived];
}

const SOURCES: Record<string, (path: string) => Promise<Blob | Source>> = {
  'a Blob': () => Promise.resolve(new Blob([BYTES])),
  'a path': fileSource,
  'a Node stream': (path) =>
    Promise.resolve(streamSource(createReadStream(path, { highWaterMark: 5000 }), BYTES.length)),
};

for (const [name, source] of Object.entries(SOURCES)) {
  test(`an upload of ${name} that was cut off goes on where it was`, () =>
    inFile(async (path) => {
      const [resume, arrived] = await interrupted(await source(path));
      const network = new Network();
      const alice = clientOf('alice', { fetch: network.fetch });
      const done = await alice.upload(await source(path), { ...DETAILS, resume });
      assert.deepEqual([done.uploadId, arrived, done.sentParts], [resume, 4, PARTS - 4]);
      assert.equal(network.sent.filter(isPart).length, PARTS - 4);
      assert.deepEqual(await stored(alice, done.videoId), BYTES);
      const again = await alice.upload(await source(path), { ...DETAILS, resume });
      assert.deepEqual([again.videoId, again.sentParts], [done.videoId, 0]);
    }));
}

test('parts are sent again when they break, expire, or are turned away', async () => {
  const network = new Network()
    .fault(isPart, lost)
    .fault(isPart, answered(403, {}, 'url-expired'))
    .fault(isPart, answered(503, { 'Retry-After': '0' }, 'object-store-unavailable'))
    .fault((request) => request.url.endsWith('/uploads'), lost)
    .fault((request) => request.url.endsWith('/complete'), lost);
  const alice = clientOf('alice', { fetch: network.fetch });
  const { videoId } = await alice.upload(new Blob([BYTES]), DETAILS);
  assert.equal(network.sent.filter(isPart).length, PARTS + 3);
  assert.ok(network.of('POST', /part-urls$/).length >= 1);
  assert.deepEqual(await stored(alice, videoId), BYTES);
});

test('what the server misses at the end is sent again', async () => {
  const network = new Network().fault(isPart, answered(200), 2);
  const alice = clientOf('alice', { fetch: network.fetch });
  const { videoId } = await alice.upload(new Blob([BYTES]), DETAILS);
  assert.equal(network.of('POST', /complete$/).length, 2);
  assert.deepEqual(await stored(alice, videoId), BYTES);
});

test('URLs of more parts than one call gives are asked for as they are needed', async () => {
  const bytes = film(130 * PART);
  const network = new Network();
  const alice = clientOf('alice', { fetch: network.fetch });
  const { videoId } = await alice.upload(new Blob([bytes]), DETAILS);
  assert.equal(network.of('POST', /part-urls$/).length, 1);
  assert.deepEqual(await stored(alice, videoId), bytes);
});

test('a signal stops an upload, which can be resumed', async () => {
  const stop = new AbortController();
  let uploadId = '';
  const options = { ...DETAILS, parallel: 1, signal: stop.signal };
  const onProgress = (sent: number): void => {
    if (sent > 2 * PART) {
      stop.abort(new Error('enough'));
    }
  };
  const onStart = (id: string): string => (uploadId = id);
  const alice = clientOf('alice');
  const film = new Blob([BYTES]);
  await assert.rejects(alice.upload(film, { ...options, onProgress, onStart }), /enough/);
  const { sentParts } = await alice.upload(film, { ...DETAILS, resume: uploadId });
  assert.equal(sentParts, PARTS - 3);
});

test('other bytes are not taken for the rest of an upload', async () => {
  const [resume] = await interrupted(new Blob([BYTES]));
  const other = new Blob([BYTES, 'x']);
  await assert.rejects(clientOf('alice').upload(other, { ...DETAILS, resume }), /is of \d+ bytes/);
});

test('a stream that is shorter than it was said to be ends its upload', async () => {
  const source = streamSource(new Blob([BYTES]).stream(), BYTES.length + 1);
  await assert.rejects(clientOf('alice').upload(source, DETAILS), /the stream ended/);
});
