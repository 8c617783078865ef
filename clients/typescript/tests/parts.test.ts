/** What needs no server. */
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { parseEvents, type StreamState } from '../src/events.js';
import { merged } from '../src/index.js';
import { Retries } from '../src/retries.js';

const token = (text: string): string => Buffer.from(text).toString('base64url');

test('positions are compared number by number', () => {
  const cases = [
    ['backlot:7:3', 'backlot:9', 'backlot:9:3'],
    ['backlot:9', 'backlot:7:3', 'backlot:9:3'],
    ['backlot:10', 'backlot:9', 'backlot:10'],
    // Of another store, or of none: the newer one counts.
    ['backlot:10', 'other:1', 'other:1'],
    ['nonsense', 'backlot:1', 'backlot:1'],
  ] as const;
  for (const [one, other, both] of cases) {
    assert.equal(merged(token(one), token(other)), token(both));
  }
  assert.equal(merged('%%%', token('backlot:1')), token('backlot:1'));
});

async function parsed(text: string, size: number): Promise<[unknown[], StreamState]> {
  const bytes = new TextEncoder().encode(text);
  const body = new ReadableStream<Uint8Array>({
    start(told) {
      for (let at = 0; at < bytes.length; at += size) {
        told.enqueue(bytes.slice(at, at + size));
      }
      told.close();
    },
  });
  const state: StreamState = { id: '' };
  const found: unknown[] = [];
  for await (const event of parseEvents(body, state, 60_000)) {
    found.push(event);
  }
  return [found, state];
}

test('events are read as the standard has them, wherever they are cut', async () => {
  const text = [
    'retry: 1500\n\n',
    ': a comment\nid: 1\nevent: likes\ndata: {"likesCount": 1}\n\n',
    'id: 2\r\ndata:über\r\ndata: zwei: Zeilen\r\n\r\n',
    // An id without data is no event, and counts all the same.
    ': still here\nid: 3\n\n',
    // What is not ended by a blank line is no event.
    'id: 4\ndata: half',
  ].join('');
  for (const size of [1, 2, 3, 7, 1000]) {
    const [found, state] = await parsed(text, size);
    assert.deepEqual(found, [
      { id: '1', kind: 'likes', data: '{"likesCount": 1}' },
      { id: '2', kind: 'message', data: 'über\nzwei: Zeilen' },
    ]);
    assert.deepEqual(state, { id: '3', retryMs: 1500 });
  }
});

test('a stream on which nothing comes counts as broken', async () => {
  let left = false;
  const body = new ReadableStream<Uint8Array>({
    cancel: () => {
      left = true;
    },
  });
  await assert.rejects(parseEvents(body, { id: '' }, 1).next(), /nothing came for 1 ms/);
  assert.ok(left);
});

test('pauses double, up to the longest, and a server may ask for more', async () => {
  const answer = (seconds: string): Response =>
    new Response(null, { headers: { 'Retry-After': seconds } });
  const retries = new Retries({ firstPauseMs: 1, longestPauseMs: 2_000 });
  assert.ok(retries.admits(answer('2')) && !retries.admits(answer('3')));
  // No number of seconds, as a date, asks for nothing.
  assert.ok(retries.admits(answer('Wed, 21 Oct 2026 07:28:00 GMT')));
  const stopped = AbortSignal.abort(new Error('enough'));
  await assert.rejects(retries.pause(1, answer('60'), stopped), /enough/);
});
