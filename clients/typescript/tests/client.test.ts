import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import { getVideoStats, watchVideo } from '../src/generated/sdk.gen.js';
import { Problem } from '../src/index.js';
import { answered, clientOf, lost, Network, newVideo, tokenOf } from './support.js';

let video: string;
before(async () => {
  video = await newVideo(clientOf('alice'));
});

async function collected<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) {
    all.push(item);
  }
  return all;
}

test('a comment whose answer is lost is posted once, under one key', async () => {
  const network = new Network().fault((request) => request.method === 'POST', lost, 2);
  const bob = clientOf('bob', { fetch: network.fetch });
  const own = await newVideo(clientOf('alice'));
  const posted = await bob.comment(own, 'Nice rain');
  const posts = network.of('POST', /comments$/);
  assert.equal(posts.length, 3);
  const keys = new Set(posts.map((post) => post.headers.get('Idempotency-Key')));
  assert.equal(keys.size, 1);
  assert.ok(!keys.has(null));
  const comments = await collected(bob.comments(own));
  assert.deepEqual(comments.map((each) => each.commentId), [posted.commentId]);
});

test('two comments of the same text are two', async () => {
  const own = await newVideo(clientOf('alice'));
  const bob = clientOf('bob');
  await bob.comment(own, 'Rain');
  await bob.comment(own, 'Rain');
  assert.equal((await collected(bob.comments(own))).length, 2);
});

test('a like is repeated through outages, and counts once', async () => {
  const network = new Network()
    .fault(() => true, lost)
    .fault(() => true, answered(503, { 'Retry-After': '0' }, 'overloaded'))
    .fault(() => true, answered(409, {}, 'contended'));
  const bob = clientOf('bob', { fetch: network.fetch });
  const liked = await bob.like(video);
  assert.deepEqual([liked.hasLiked, liked.likesCount], [true, 1]);
  assert.equal(network.sent.length, 4);
  assert.equal((await bob.unlike(video)).hasLiked, false);
});

test('what will not pass is not repeated', async () => {
  const refusals = [
    answered(429, { 'Retry-After': '86400' }, 'quota-exceeded'),
    answered(409, {}, 'comments-closed'),
    answered(422, {}, 'invalid'),
  ];
  for (const refusal of refusals) {
    const network = new Network().fault(() => true, refusal, 9);
    const bob = clientOf('bob', { fetch: network.fetch });
    await assert.rejects(bob.comment(video, 'No'), Problem);
    assert.equal(network.sent.length, 1);
  }
});

test('an outage that does not end is thrown after all attempts', async () => {
  const network = new Network().fault(() => true, answered(503, {}, 'store-unavailable'), 99);
  const bob = clientOf('bob', { fetch: network.fetch, retries: { firstPauseMs: 1, attempts: 3 } });
  await assert.rejects(bob.like(video), (error: Problem) => {
    assert.deepEqual([error.status, error.type], [503, 'store-unavailable']);
    return true;
  });
  assert.equal(network.sent.length, 3);
});

test('a problem of the server says what it is', async () => {
  await assert.rejects(clientOf('bob').video(crypto.randomUUID()), (error: Problem) => {
    assert.ok(error instanceof Problem);
    assert.deepEqual([error.status, error.type], [404, 'not-found']);
    assert.ok(error.requestId !== undefined && error.requestId !== '');
    return true;
  });
});

test('a token that is refused is replaced, once for all requests', async () => {
  const given: string[] = [];
  const token = async (): Promise<string> => {
    given.push(given.length === 0 ? 'stale' : tokenOf('bob'));
    return given[given.length - 1] ?? '';
  };
  const bob = clientOf('bob', { token });
  await Promise.all([bob.like(video), bob.comment(video, 'Hello'), bob.video(video)]);
  assert.deepEqual(given, ['stale', tokenOf('bob')]);
});

test('a token that is refused again is a problem, and asked for anew next time', async () => {
  let asked = 0;
  const token = (): string => `no token ${(asked += 1)}`;
  const nobody = clientOf('bob', { token });
  await assert.rejects(nobody.like(video), { status: 401, type: 'unauthenticated' });
  assert.equal(asked, 2);
});

test('a callback that fails is thrown as it is, and not kept', async () => {
  let asked = 0;
  const token = (): Promise<string> => {
    asked += 1;
    return asked === 1 ? Promise.reject(new Error('log in')) : Promise.resolve(tokenOf('bob'));
  };
  const bob = clientOf('bob', { token });
  await assert.rejects(bob.like(video), /log in/);
  assert.equal((await bob.like(video)).hasLiked, true);
});

test('reads see own writes: their positions are sent, of any call', async () => {
  const network = new Network();
  const bob = clientOf('carol', { fetch: network.fetch });
  const own = await newVideo(clientOf('alice'));
  assert.equal(bob.position, undefined);
  await Promise.all([bob.like(own), bob.comment(own, 'Here')]);
  const path = { video_id: own };
  await watchVideo({ client: bob.client, throwOnError: true, path });
  const alice = clientOf('alice');
  alice.see(bob.position ?? '');
  // Without a limit of the test's own for how long counting takes.
  const headers = { 'Backlot-Timeout-Ms': 30_000 };
  const options = { client: alice.client, throwOnError: true, path, headers } as const;
  const { totals } = (await getVideoStats(options)).data;
  assert.deepEqual([totals.likes, totals.comments, totals.views], [1, 1, 1]);
  assert.equal((await alice.stats(own)).totals.likes, 1);
  await bob.video(own);
  const read = network.of('GET', /videos/).at(-1);
  assert.equal(read?.headers.get('Backlot-Min-Position'), bob.position);
});

test('lists are read page by page, and no further than is wanted', async () => {
  const own = await newVideo(clientOf('alice'));
  const network = new Network();
  const bob = clientOf('bob', { fetch: network.fetch });
  for (const text of ['1', '2', '3', '4', '5']) {
    await bob.comment(own, text);
  }
  const all = await collected(bob.comments(own, { limit: 2 }));
  assert.deepEqual(all.map((each) => each.content), ['5', '4', '3', '2', '1']);
  assert.equal(network.of('GET', /comments/).length, 3);
  for await (const newest of bob.comments(own, { limit: 2 })) {
    assert.equal(newest.content, '5');
    break;
  }
  assert.equal(network.of('GET', /comments/).length, 4);
  await bob.like(own);
  const [liked] = await collected(bob.liked({ limit: 1 }));
  assert.equal(liked?.videoId, own);
  const mine = await collected(clientOf('alice').videos({ owner: 'me', limit: 1 }));
  assert.ok(mine.length > 1 && mine[0]?.videoId === own);
});

test('a call that is aborted ends at once, without repeats', async () => {
  const stop = new AbortController();
  const network = new Network().fault(() => true, (request) => {
    stop.abort();
    return fetch(request);
  }, 9);
  const bob = clientOf('bob', { fetch: network.fetch });
  const path = { video_id: video };
  const options = { client: bob.client, throwOnError: true, path, signal: stop.signal } as const;
  await assert.rejects(watchVideo(options), { name: 'AbortError' });
  assert.equal(network.sent.length, 1);
});
