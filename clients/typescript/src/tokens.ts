/** Gives a token; called for the first request, and again whenever the server refuses one (401). */
export type TokenSource = () => string | Promise<string>;

/** The token that requests are sent with. */
export class Tokens {
  readonly #source: TokenSource | undefined;
  #current: Promise<string> | undefined;

  constructor(source: TokenSource | undefined) {
    this.#source = source;
  }

  /** Return the token; undefined for a client without one. Concurrent callers share one question. */
  async current(): Promise<string | undefined> {
    if (this.#source === undefined) {
      return undefined;
    }
    const asked = (this.#current ??= Promise.resolve().then(this.#source));
    try {
      return await asked;
    } catch (error) {
      // The next request asks again.
      this.#forget(asked);
      throw error;
    }
  }

  /** Return whether there may be another token than this one, which was refused. */
  async refuse(token: string | undefined): Promise<boolean> {
    const asked = this.#current;
    if (asked === undefined || token === undefined) {
      return token !== undefined;
    }
    if ((await asked) === token) {
      this.#forget(asked);
    }
    return true;
  }

  #forget(asked: Promise<string>): void {
    if (this.#current === asked) {
      this.#current = undefined;
    }
  }
}
