import { parseEvents, type StreamState } from './events.js';
import type { Client } from './generated/client/index.js';
import { getLiveTicket, getVideo } from './generated/sdk.gen.js';
import type { Comment } from './generated/types.gen.js';
import { Problem } from './problem.js';
import { sleep } from './retries.js';
import type { Transport } from './transport.js';

interface Kinds {
  likes: { likesCount: number };
  comment: Comment;
  'comment-edited': Comment;
  'comment-translated': Comment;
  'comment-removed': { commentId: string };
  /** More has happened than is told: read the comments again. */
  reset: { videoId: string };
  /** The last one: the video is, or is private by now. */
  removed: { videoId: string };
}

/** What happens around a video; `id` is a position, with which a feed goes on. */
export type LiveEvent = { [K in keyof Kinds]: { id: string; kind: K; data: Kinds[K] } }[keyof Kinds];

const KINDS: readonly (keyof Kinds)[] = [
  'likes',
  'comment',
  'comment-edited',
  'comment-translated',
  'comment-removed',
  'reset',
  'removed',
];

export interface LiveOptions {
  /** The `id` of the last event that is known, or the position of the comments that were read. */
  after?: string;
  signal?: AbortSignal;
  /** After so long without a sign of life the connection counts as dead. Default: 45,000. */
  silenceMs?: number;
}

const RETRY_MS = 2_000;
const LONGEST_RETRY_MS = 30_000;

/**
 * Yield what happens around a video, over all connections that this takes, with the client's token.
 *
 * Ends after `removed`, and when the signal is aborted. Throws a Problem where the stream is refused
 * for good: 404, or a token that is refused after it was replaced.
 */
export async function* follow(
  transport: Transport,
  url: string,
  options: LiveOptions,
): AsyncGenerator<LiveEvent, void, undefined> {
  const state: StreamState = { id: options.after ?? '' };
  const { signal } = options;
  let failures = 0;
  while (signal?.aborted !== true) {
    const leave = new AbortController();
    const both = signal ? AbortSignal.any([signal, leave.signal]) : leave.signal;
    const answer = await open(transport, url, state.id, both);
    try {
      if (answer?.ok === true && answer.body !== null) {
        for await (const event of parseEvents(answer.body, state, options.silenceMs ?? 45_000)) {
          failures = 0;
          if (isKnown(event.kind)) {
            yield { id: event.id, kind: event.kind, data: JSON.parse(event.data) } as LiveEvent;
          }
          if (event.kind === 'removed') {
            return;
          }
        }
      }
    } catch {
      // The connection broke, or nothing came: another one goes on where this one was.
    } finally {
      leave.abort();
    }
    failures += 1;
    await pause(state.retryMs ?? RETRY_MS, failures, answer, signal);
  }
}

/** Return the stream, or an answer that may pass; undefined where nobody answers. */
async function open(
  transport: Transport,
  url: string,
  after: string,
  signal: AbortSignal,
): Promise<Response | undefined> {
  for (let replaced = false; ; replaced = true) {
    const headers = new Headers({ Accept: 'text/event-stream' });
    const token = await transport.tokens.current();
    if (token !== undefined) {
      headers.set('Authorization', `Bearer ${token}`);
    }
    if (after !== '') {
      headers.set('Last-Event-ID', after);
    }
    const request = new Request(url, { headers, signal, cache: 'no-store' });
    const answer = await transport.once(request).catch(() => undefined);
    if (answer === undefined) {
      return undefined;
    }
    if (answer.status === 401 && !replaced && (await transport.tokens.refuse(token))) {
      continue;
    }
    if (!answer.ok && answer.status !== 429 && answer.status < 500) {
      throw await Problem.of(answer);
    }
    return answer;
  }
}

async function pause(
  retryMs: number,
  failures: number,
  answer: Response | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  const asked = Number(answer?.headers.get('Retry-After') ?? 0) * 1000 || 0;
  const own = Math.min(retryMs * 2 ** (failures - 1), LONGEST_RETRY_MS);
  // Random, so that clients of one outage don't come back at once.
  await sleep(Math.max(own * (0.5 + Math.random() / 2), asked), signal).catch(() => undefined);
}

function isKnown(kind: string): kind is keyof Kinds {
  return (KINDS as readonly string[]).includes(kind);
}

export interface ListenOptions {
  after?: string;
  /** Called when the stream is refused for good; then nothing more comes. */
  onError?: (error: unknown) => void;
}

/**
 * The same by the browser's `EventSource`, which can't send a token: by a ticket, or without one
 * for a client that has no token. Return what ends it.
 */
export function listen(
  client: Client,
  transport: Transport,
  videoId: string,
  onEvent: (event: LiveEvent) => void,
  options: ListenOptions,
): () => void {
  const ended = new AbortController();
  let after = options.after ?? '';
  let source: EventSource | undefined;
  let failures = 0;

  const connect = async (): Promise<void> => {
    const url = await addressed(client, transport, videoId, after, failures > 0);
    if (ended.signal.aborted) {
      return;
    }
    const opened = (source = new EventSource(url));
    for (const kind of KINDS) {
      opened.addEventListener(kind, (event: MessageEvent<string>) => {
        failures = 0;
        after = event.lastEventId;
        onEvent({ id: after, kind, data: JSON.parse(event.data) } as LiveEvent);
        if (kind === 'removed') {
          stop();
        }
      });
    }
    opened.onerror = () => {
      // It comes back by itself, unless it was refused: the ticket has ended, most often.
      if (opened.readyState === EventSource.CLOSED && !ended.signal.aborted) {
        void again();
      }
    };
  };
  const again = async (): Promise<void> => {
    // At once after what has worked till now: a ticket ends after a minute.
    if (failures > 0) {
      await pause(RETRY_MS, failures, undefined, ended.signal);
    }
    failures += 1;
    await begin();
  };
  const begin = async (): Promise<void> => {
    try {
      await connect();
    } catch (error) {
      if (!ended.signal.aborted) {
        stop();
        options.onError?.(error);
      }
    }
  };
  const stop = (): void => {
    ended.abort();
    source?.close();
  };
  void begin();
  return stop;
}

/** Return the URL of a stream; throw a Problem where a refusal was for good. */
async function addressed(
  client: Client,
  transport: Transport,
  videoId: string,
  after: string,
  wasRefused: boolean,
): Promise<string> {
  const path = { video_id: videoId };
  const query: Record<string, string> = after === '' ? {} : { after };
  if ((await transport.tokens.current()) !== undefined) {
    const { data } = await getLiveTicket({ client, throwOnError: true, path });
    query['ticket'] = data.ticket;
  } else if (wasRefused) {
    await getVideo({ client, throwOnError: true, path });
  }
  return client.buildUrl({ url: '/videos/{video_id}/events', path, query });
}
