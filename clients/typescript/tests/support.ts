/** The started program that tests talk to, and a network that misbehaves. */
import { Backlot, type BacklotOptions, type Fetch } from '../src/index.js';

export function setting(name: string): string {
  const value = process.env[name];
  if (value === undefined) {
    throw new Error(`${name} is not set: pytest tests/e2e/test_typescript_client.py`);
  }
  return value;
}

const tokens = JSON.parse(setting('BACKLOT_TOKENS')) as Record<string, string>;

export function tokenOf(user: string): string {
  const token = tokens[user];
  if (token === undefined) {
    throw new Error(`there is no token of ${user}`);
  }
  return token;
}

export function clientOf(user: string, options: Partial<BacklotOptions> = {}): Backlot {
  return new Backlot({
    baseUrl: setting('BACKLOT_URL'),
    token: () => tokenOf(user),
    // Tests wait for no clock.
    retries: { firstPauseMs: 1 },
    ...options,
  });
}

/** Requests as they went out, each with what becomes of it. */
export class Network {
  readonly sent: Request[] = [];
  readonly #faults: { when: (request: Request) => boolean; do: Fetch; times: number }[] = [];

  /** Let the next requests of a kind meet a fault in place of the server. */
  fault(when: (request: Request) => boolean, fault: Fetch, times = 1): this {
    this.#faults.push({ when, do: fault, times });
    return this;
  }

  readonly fetch: Fetch = (request) => {
    this.sent.push(request.clone());
    const fault = this.#faults.find((each) => each.times > 0 && each.when(request));
    if (fault === undefined) {
      return fetch(request);
    }
    fault.times -= 1;
    return fault.do(request);
  };

  of(method: string, path: RegExp): Request[] {
    return this.sent.filter((request) => request.method === method && path.test(request.url));
  }
}

/** The server does it, and the answer is lost on the way. */
export const lost: Fetch = async (request) => {
  await (await fetch(request)).arrayBuffer();
  throw new TypeError('the connection was reset');
};

/** An answer without the server. */
export function answered(status: number, headers: Record<string, string> = {}, type = ''): Fetch {
  const body = JSON.stringify({ type, detail: 'a test', status, title: 'Test' });
  return () => Promise.resolve(new Response(body, { status, headers }));
}

export const isPart = (request: Request): boolean => request.method === 'PUT' && request.url.includes('/objects/');

/** A film of so many bytes, no two parts of it alike. */
export function film(size: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(size);
  for (let at = 0; at < size; at += 1) {
    bytes[at] = (at * 31 + (at >> 12)) % 251;
  }
  return bytes;
}

export const DETAILS = { title: 'Rain', filename: 'rain.mp4', contentType: 'video/mp4' };

/** Return the id of a new video. */
export async function newVideo(owner: Backlot, details: object = {}): Promise<string> {
  return (await owner.upload(new Blob([film(10)]), { ...DETAILS, ...details })).videoId;
}
