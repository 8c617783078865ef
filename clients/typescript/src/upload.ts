import type { Client } from './generated/client/index.js';
import { completeUpload, getPartUrls, getUpload, startUpload } from './generated/sdk.gen.js';
import type { PartUrl, StartUpload, UploadStatus } from './generated/types.gen.js';
import { Problem } from './problem.js';
import type { Source } from './sources.js';
import type { Transport } from './transport.js';

export interface UploadOptions extends Omit<StartUpload, 'sizeBytes'> {
  /** How many parts are sent at once. Default: 4. */
  parallel?: number;
  /** The id of an upload of the same bytes that was interrupted: only what lacks is sent. */
  resume?: string;
  /** Called with the upload's id before the first part is sent: keep it, to resume. */
  onStart?: (uploadId: string) => void;
  /** Called whenever a part has arrived, and first with what had arrived before. */
  onProgress?: (sentBytes: number, totalBytes: number) => void;
  /** Stops sending. The upload stays as it is, and can be resumed. */
  signal?: AbortSignal;
}

export interface Uploaded {
  uploadId: string;
  videoId: string;
  /** How many parts this call has sent. */
  sentParts: number;
}

/** As many URLs as one call gives. */
const MOST_URLS = 100;
/** How often parts that the server misses, or that are wrong, are sent again. */
const ROUNDS = 3;

type Begun = Pick<UploadStatus, 'uploadId' | 'videoId' | 'partSizeBytes' | 'partCount'>;

/** Upload a video: begin or resume, send what lacks in parallel parts, complete. */
export async function upload(
  client: Client,
  transport: Transport,
  source: Source,
  options: UploadOptions,
): Promise<Uploaded> {
  const { begun, arrived, urls } =
    options.resume === undefined
      ? await begin(client, source, options)
      : await resume(client, source, options.resume);
  const { uploadId, videoId } = begun;
  if (arrived === undefined) {
    return { uploadId, videoId, sentParts: 0 };
  }
  options.onStart?.(uploadId);
  const sending = new Sending(client, transport, source, begun, arrived, options);
  sending.know(urls);
  await sending.send(sending.lacking());
  for (let round = 1; ; round += 1) {
    const refused = await complete(client, uploadId, options.signal);
    if (refused === undefined) {
      return { uploadId, videoId, sentParts: sending.sent };
    }
    if (round === ROUNDS || refused.parts.length === 0) {
      throw refused.problem;
    }
    await sending.send(refused.parts);
  }
}

interface Beginning {
  begun: Begun;
  /** The parts that have arrived; undefined where the upload is complete. */
  arrived: Set<number> | undefined;
  urls: PartUrl[];
}

async function begin(client: Client, source: Source, options: UploadOptions): Promise<Beginning> {
  const { parallel, resume, onStart, onProgress, signal, ...details } = options;
  const { data } = await startUpload({
    client,
    throwOnError: true,
    body: { ...details, sizeBytes: source.size },
    ...(signal && { signal }),
  });
  return { begun: data, arrived: new Set(), urls: data.parts };
}

async function resume(client: Client, source: Source, uploadId: string): Promise<Beginning> {
  const path = { upload_id: uploadId };
  const { data: found } = await getUpload({ client, throwOnError: true, path });
  if (found.sizeBytes !== source.size) {
    throw new Error(`upload ${uploadId} is of ${found.sizeBytes} bytes, not of ${source.size}`);
  }
  if (found.status === 'completed') {
    return { begun: found, arrived: undefined, urls: [] };
  }
  if (found.status !== 'started') {
    throw new Error(`upload ${uploadId} is ${found.status}: begin another one`);
  }
  const whole = found.parts.filter((part) => part.sizeBytes === sizeOf(found, source, part.number));
  return { begun: found, arrived: new Set(whole.map((part) => part.number)), urls: [] };
}

/** Return undefined when the upload is complete, or which parts lack or are wrong. */
async function complete(
  client: Client,
  uploadId: string,
  signal: AbortSignal | undefined,
): Promise<{ problem: Problem; parts: number[] } | undefined> {
  try {
    const path = { upload_id: uploadId };
    await completeUpload({ client, throwOnError: true, path, ...(signal && { signal }) });
    return undefined;
  } catch (problem) {
    if (problem instanceof Problem && problem.type === 'parts-mismatch') {
      const { missing = [], wrong = [] } = problem.details as Record<string, number[]>;
      return { problem, parts: [...missing, ...wrong].sort((one, other) => one - other) };
    }
    throw problem;
  }
}

function firstByte(begun: Begun, number: number): number {
  return (number - 1) * begun.partSizeBytes;
}

function sizeOf(begun: Begun, source: Source, number: number): number {
  return Math.min(begun.partSizeBytes, source.size - firstByte(begun, number));
}

/** The parts of one upload on their way. */
class Sending {
  sent = 0;
  #bytes = 0;
  readonly #urls = new Map<number, string>();
  readonly #stopped = new AbortController();
  readonly #signal: AbortSignal;
  #asking: Promise<void> = Promise.resolve();

  constructor(
    private readonly client: Client,
    private readonly transport: Transport,
    private readonly source: Source,
    private readonly begun: Begun,
    private readonly arrived: Set<number>,
    private readonly options: UploadOptions,
  ) {
    const own = this.#stopped.signal;
    this.#signal = options.signal ? AbortSignal.any([own, options.signal]) : own;
    for (const number of arrived) {
      this.#bytes += sizeOf(begun, source, number);
    }
    options.onProgress?.(this.#bytes, source.size);
  }

  know(urls: readonly PartUrl[]): void {
    for (const { number, url } of urls) {
      this.#urls.set(number, url);
    }
  }

  lacking(): number[] {
    const all = Array.from({ length: this.begun.partCount }, (_, index) => index + 1);
    return all.filter((number) => !this.arrived.has(number));
  }

  /** Send these parts, several at once; the first failure stops the others. */
  async send(numbers: readonly number[]): Promise<void> {
    const waiting = numbers.values();
    const work = async (): Promise<void> => {
      for (const number of waiting) {
        await this.#sendPart(number, numbers);
      }
    };
    const workers = Array.from({ length: Math.max(1, this.options.parallel ?? 4) }, work);
    try {
      await Promise.all(workers);
    } catch (error) {
      this.#stopped.abort(error);
      await Promise.allSettled(workers);
      throw error;
    }
  }

  async #sendPart(number: number, numbers: readonly number[]): Promise<void> {
    this.#signal.throwIfAborted();
    const first = firstByte(this.begun, number);
    const size = sizeOf(this.begun, this.source, number);
    const body = await this.source.read(first, first + size);
    for (let failures = 0; ; ) {
      const url = await this.#url(number, numbers);
      const [answer, error] = await this.#put(url, body);
      if (answer?.ok === true) {
        break;
      }
      failures += 1;
      if (failures === this.transport.retries.attempts || (answer && !passes(answer))) {
        throw answer ? await Problem.of(answer) : error;
      }
      // It may have expired, here or at S3, which says so with the same status.
      this.#urls.delete(number);
      await this.transport.retries.pause(failures, answer, this.#signal);
    }
    this.sent += 1;
    this.#bytes += this.arrived.has(number) ? 0 : size;
    this.arrived.add(number);
    this.options.onProgress?.(this.#bytes, this.source.size);
  }

  async #put(url: string, body: Blob | Uint8Array<ArrayBuffer>): Promise<[Response?, unknown?]> {
    try {
      const request = new Request(url, { method: 'PUT', body, signal: this.#signal });
      return [await this.transport.once(request)];
    } catch (error) {
      this.#signal.throwIfAborted();
      return [undefined, error];
    }
  }

  /** Return a part's URL; where there is none, ask for those of the parts after it as well. */
  async #url(number: number, numbers: readonly number[]): Promise<string> {
    // One question after another: the one before may have been for this part, too.
    const asked = this.#asking.then(async () => {
      if (!this.#urls.has(number)) {
        await this.#ask(numbers.filter((each) => each >= number && !this.#urls.has(each)));
      }
    });
    this.#asking = asked.catch(() => undefined);
    await asked;
    const url = this.#urls.get(number);
    if (url === undefined) {
      throw new Error(`the server gave no URL for part ${number}`);
    }
    return url;
  }

  async #ask(numbers: readonly number[]): Promise<void> {
    const { data } = await getPartUrls({
      client: this.client,
      throwOnError: true,
      path: { upload_id: this.begun.uploadId },
      body: { numbers: numbers.slice(0, MOST_URLS) },
      signal: this.#signal,
    });
    this.know(data.parts);
  }
}

/** Whether a part may be taken at another attempt, with a fresh URL. */
function passes(answer: Response): boolean {
  return [400, 403, 408, 422, 429].includes(answer.status) || answer.status >= 500;
}
