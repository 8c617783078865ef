import assert from 'node:assert/strict';
import { test } from 'node:test';

import { removeVideo } from '../src/generated/sdk.gen.js';
import type { LiveEvent } from '../src/index.js';
import { answered, clientOf, Network, newVideo, tokenOf } from './support.js';

const isStream = (request: Request): boolean => request.url.includes('/events');

async function next(feed: AsyncGenerator<LiveEvent, void>, kind: LiveEvent['kind']): Promise<LiveEvent> {
  for (;;) {
    const { done, value } = await feed.next();
    if (done === true) {
      throw new Error(`the feed ended before ${kind}`);
    }
    if (value.kind === kind) {
      return value;
    }
  }
}

test('a private video is followed with a token, until it is removed', async () => {
  const alice = clientOf('alice');
  const video = await newVideo(alice, { visibility: 'private' });
  const feed = alice.live(video);
  assert.deepEqual((await next(feed, 'likes')).data, { likesCount: 0 });
  await alice.like(video);
  assert.deepEqual((await next(feed, 'likes')).data, { likesCount: 1 });
  const { commentId } = await alice.comment(video, 'Seen at once');
  const told = await next(feed, 'comment');
  assert.ok(told.kind === 'comment' && told.data.commentId === commentId);
  await assert.rejects(clientOf('bob').live(video).next(), { status: 404 });
  const path = { video_id: video };
  await removeVideo({ client: alice.client, throwOnError: true, path });
  await next(feed, 'removed');
  assert.equal((await feed.next()).done, true);
});

test('a feed whose connection breaks goes on where it was', async () => {
  const alice = clientOf('alice');
  const video = await newVideo(alice);
  // The first stream breaks when it is told to, and says to come back at once.
  let cut = (): void => undefined;
  const network = new Network()
    .fault(isStream, async (request) => {
      const answer = await fetch(request);
      const leave = new Promise<never>((_, reject) => {
        cut = () => reject(new TypeError('reset'));
      });
      leave.catch(() => undefined);
      return new Response(cuttable(answer.body, leave), answer);
    })
    .fault(isStream, answered(503, {}, 'unavailable'))
    .fault(isStream, () => Promise.reject(new TypeError('nobody is there')));
  const feed = clientOf('bob', { fetch: network.fetch }).live(video);
  const first = await next(feed, 'likes');
  cut();
  const missed = await alice.comment(video, 'While nobody listened');
  const told = await next(feed, 'comment');
  assert.ok(told.kind === 'comment' && told.data.commentId === missed.commentId);
  const opened = network.sent.filter(isStream).map((each) => each.headers.get('Last-Event-ID'));
  assert.deepEqual(opened, [null, first.id, first.id, first.id]);
  await feed.return();
});

/** A body that comes as it is, with another `retry`, until it breaks. */
function cuttable(
  body: ReadableStream<Uint8Array> | null,
  leave: Promise<never>,
): ReadableStream<Uint8Array> {
  const reader = body?.getReader();
  return new ReadableStream({
    start: (told) => told.enqueue(new TextEncoder().encode('retry: 1\n\n')),
    pull: async (told) => {
      const { value } = (await Promise.race([reader?.read(), leave])) ?? {};
      const text = new TextDecoder().decode(value).replace(/retry: \d+/, 'retry: 1');
      told.enqueue(new TextEncoder().encode(text));
    },
    cancel: () => reader?.cancel(),
  });
}

test('a token that has ended is replaced when a feed is opened', async () => {
  const given: string[] = [];
  const token = (): string => {
    given.push('asked');
    return given.length === 1 ? 'stale' : tokenOf('alice');
  };
  const alice = clientOf('alice', { token });
  const video = await newVideo(clientOf('alice'), { visibility: 'private' });
  const feed = alice.live(video);
  await next(feed, 'likes');
  assert.equal(given.length, 2);
  await feed.return();
});

test('a signal ends a feed that waits', async () => {
  const video = await newVideo(clientOf('alice'));
  const stop = new AbortController();
  const feed = clientOf('bob').live(video, { signal: stop.signal });
  await next(feed, 'likes');
  const waiting = feed.next();
  stop.abort();
  assert.equal((await waiting).done, true);
});
