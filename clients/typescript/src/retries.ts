export interface RetryOptions {
  /** How often something is tried at most, the first time included. Default: 6. */
  attempts?: number;
  /** The pause before the second attempt; each further one is twice as long. Default: 200. */
  firstPauseMs?: number;
  /** The longest pause; a refusal that asks for a longer one is not repeated. Default: 30,000. */
  longestPauseMs?: number;
}

/** How often, and after which pauses, something is tried again. */
export class Retries {
  readonly attempts: number;
  readonly #first: number;
  readonly #longest: number;

  constructor(options: RetryOptions = {}) {
    this.attempts = Math.max(1, options.attempts ?? 6);
    this.#first = options.firstPauseMs ?? 200;
    this.#longest = options.longestPauseMs ?? 30_000;
  }

  /**
   * Wait before the next attempt, of which `failures` came before. A server's `Retry-After` is the
   * least. Pauses are random, so that clients of one outage don't come back at once.
   */
  async pause(failures: number, answer?: Response, signal?: AbortSignal): Promise<void> {
    const own = this.#first * 2 ** (failures - 1) * (0.5 + Math.random() / 2);
    await sleep(Math.max(Math.min(own, this.#longest), asked(answer)), signal);
  }

  /** Whether the server asks for no longer a pause than this client makes. */
  admits(answer: Response): boolean {
    return asked(answer) <= this.#longest;
  }
}

/** Return for how many milliseconds the server asks, as far as it says seconds. */
function asked(answer: Response | undefined): number {
  return Number(answer?.headers.get('Retry-After') ?? 0) * 1000 || 0;
}

/** Wait; throw the signal's reason as soon as that is aborted. */
export function sleep(ms: number, signal?: AbortSignal | null): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal?.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop);
      resolve();
    }, ms);
    signal?.addEventListener('abort', stop, { once: true });
  });
}
