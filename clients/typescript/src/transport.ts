import { Positions } from './positions.js';
import { Problem } from './problem.js';
import { Retries } from './retries.js';
import { Tokens } from './tokens.js';

export type Fetch = (request: Request) => Promise<Response>;

/** So long one attempt may take, without the time for which the server was asked to wait. */
const ATTEMPT_MS = 60_000;

// What a moment later may go well. Of 409 only some are such, see below.
const PASSING = new Set([408, 429, 500, 502, 503, 504]);
const PASSING_CONFLICTS = new Set<string>(['contended', 'upload-finalizing']);

// `Response` refuses even an empty body for these.
const BODILESS = new Set([204, 205, 304]);

/** Sends requests with all that they need beside what they ask for: a `fetch` for any call. */
export class Transport {
  readonly #fetch: Fetch;

  constructor(
    readonly tokens: Tokens,
    readonly positions: Positions,
    readonly retries: Retries,
    fetch?: Fetch,
  ) {
    this.#fetch = fetch ?? ((request) => globalThis.fetch(request));
  }

  /**
   * Send a request until it is answered for good.
   *
   * A `POST` gets an `Idempotency-Key`, so that a repeat does nothing twice. A read is sent with
   * the position of the own commands. A token that is refused is replaced once.
   */
  send = async (request: Request): Promise<Response> => {
    const body = request.body === null ? undefined : await request.arrayBuffer();
    const headers = new Headers(request.headers);
    if (request.method === 'POST' && !headers.has('Idempotency-Key')) {
      headers.set('Idempotency-Key', crypto.randomUUID());
    }
    let replaced = false;
    for (let failures = 0; ; ) {
      const last = failures + 1 >= this.retries.attempts;
      let answer: Response | undefined;
      const token = await this.#prepare(request, headers);
      try {
        answer = await this.#attempt(request, headers, body);
      } catch (error) {
        if (last || request.signal.aborted) {
          throw error;
        }
      }
      if (answer?.status === 401 && !replaced && (await this.tokens.refuse(token))) {
        replaced = true;
        continue;
      }
      if (answer !== undefined && (last || !(await this.#passes(answer)))) {
        this.#note(request, answer);
        return answer;
      }
      failures += 1;
      await this.retries.pause(failures, answer, request.signal);
    }
  };

  /** Send bytes to a signed URL, or open a stream: once, as it is. */
  once(request: Request): Promise<Response> {
    return this.#fetch(request);
  }

  async #prepare(request: Request, headers: Headers): Promise<string | undefined> {
    const token = await this.tokens.current();
    if (token !== undefined) {
      headers.set('Authorization', `Bearer ${token}`);
    }
    const { latest } = this.positions;
    if (isRead(request) && latest !== undefined && !request.headers.has('Backlot-Min-Position')) {
      headers.set('Backlot-Min-Position', latest);
    }
    return token;
  }

  async #attempt(
    request: Request,
    headers: Headers,
    body: ArrayBuffer | undefined,
  ): Promise<Response> {
    const wait = Number(headers.get('Backlot-Timeout-Ms') ?? 0);
    const signal = AbortSignal.any([request.signal, AbortSignal.timeout(ATTEMPT_MS + wait)]);
    const init = body === undefined ? { headers, signal } : { headers, signal, body };
    const answer = await this.#fetch(new Request(request, init));
    // A body that is cut off is no answer, so it is read here.
    const read = await answer.arrayBuffer();
    return new Response(BODILESS.has(answer.status) ? null : read, answer);
  }

  /** Whether the same request may be answered otherwise a moment later. */
  async #passes(answer: Response): Promise<boolean> {
    if (answer.status === 409) {
      const { type } = await Problem.of(answer.clone());
      return PASSING_CONFLICTS.has(type);
    }
    return PASSING.has(answer.status) && this.retries.admits(answer);
  }

  #note(request: Request, answer: Response): void {
    const position = answer.headers.get('Backlot-Position');
    if (position !== null && answer.ok && !isRead(request)) {
      this.positions.add(position);
    }
  }
}

function isRead(request: Request): boolean {
  return request.method === 'GET' || request.method === 'HEAD';
}
