/** What is uploaded: so many bytes, of which ranges are read, in ascending order, each once. */
export interface Source {
  readonly size: number;
  read(first: number, end: number): Promise<Blob | Uint8Array<ArrayBuffer>>;
  close?(): Promise<void>;
}

/** Return a source of a `File` or another `Blob`. Nothing of it is held in memory. */
export function blobSource(blob: Blob): Source {
  return { size: blob.size, read: (first, end) => Promise.resolve(blob.slice(first, end)) };
}

/**
 * Return a source of a stream that has exactly `size` bytes: a Node stream, a `ReadableStream`, a
 * generator. Parts that are under way are held in memory. To resume, it begins at the start again.
 */
export function streamSource(
  stream: AsyncIterable<Uint8Array> | ReadableStream<Uint8Array>,
  size: number,
): Source {
  const reader = new StreamReader(stream instanceof ReadableStream ? chunks(stream) : stream);
  return {
    size,
    read: (first, end) => reader.read(first, end),
    close: () => reader.close(),
  };
}

// Not every browser can iterate over a `ReadableStream`.
async function* chunks(stream: ReadableStream<Uint8Array>): AsyncGenerator<Uint8Array> {
  const reader = stream.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) {
        return;
      }
      yield value;
    }
  } finally {
    await reader.cancel();
  }
}

class StreamReader {
  readonly #chunks: AsyncIterator<Uint8Array>;
  #left: Uint8Array = new Uint8Array();
  #at = 0;
  // Ranges are asked for side by side, and read one after another.
  #before: Promise<unknown> = Promise.resolve();

  constructor(stream: AsyncIterable<Uint8Array>) {
    this.#chunks = stream[Symbol.asyncIterator]();
  }

  read(first: number, end: number): Promise<Uint8Array<ArrayBuffer>> {
    const turn = this.#before.then(() => this.#take(first, end));
    this.#before = turn.catch(() => undefined);
    return turn;
  }

  async close(): Promise<void> {
    await this.#chunks.return?.();
  }

  async #take(first: number, end: number): Promise<Uint8Array<ArrayBuffer>> {
    const taken = new Uint8Array(end - first);
    while (this.#at < end) {
      if (this.#left.length === 0) {
        const { done, value } = await this.#chunks.next();
        if (done === true) {
          throw new Error(`the stream ended after ${this.#at} bytes, before ${end}`);
        }
        this.#left = value;
        continue;
      }
      const part = this.#left.subarray(0, end - this.#at);
      const wanted = part.subarray(Math.max(0, first - this.#at));
      taken.set(wanted, Math.max(0, this.#at - first));
      this.#at += part.length;
      this.#left = this.#left.subarray(part.length);
    }
    return taken;
  }
}
