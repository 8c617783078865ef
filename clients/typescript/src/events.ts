/** An event of a `text/event-stream`, as the standard has it. */
export interface ServerSentEvent {
  /** The newest id that was told, with this event or before. */
  id: string;
  kind: string;
  data: string;
}

/** What a stream tells beside its events. */
export interface StreamState {
  id: string;
  /** After how long to come back, if it says that. */
  retryMs?: number;
}

/**
 * Yield the events of a stream until it ends. `state` is kept up to date with ids that come without
 * an event, too. Throw when nothing at all comes for `silenceMs`.
 *
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
 */
export async function* parseEvents(
  body: ReadableStream<Uint8Array>,
  state: StreamState,
  silenceMs: number,
): AsyncGenerator<ServerSentEvent, void, undefined> {
  let [kind, data, id] = ['message', [] as string[], state.id];
  for await (const line of lines(body, silenceMs)) {
    if (line === '') {
      state.id = id;
      if (data.length > 0) {
        yield { id, kind, data: data.join('\n') };
      }
      [kind, data] = ['message', []];
      continue;
    }
    const [, name = '', value = ''] = /^([^:]*)(?::[ ]?(.*))?$/s.exec(line) ?? [];
    if (name === 'event') {
      kind = value;
    } else if (name === 'data') {
      data.push(value);
    } else if (name === 'id' && !value.includes('\0')) {
      id = value;
    } else if (name === 'retry' && /^\d+$/.test(value)) {
      state.retryMs = Number(value);
    }
  }
}

async function* lines(
  body: ReadableStream<Uint8Array>,
  silenceMs: number,
): AsyncGenerator<string, void, undefined> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = '';
  try {
    for (;;) {
      const { done, value } = await within(silenceMs, reader.read());
      if (done) {
        return;
      }
      text += decoder.decode(value, { stream: true });
      // A CR at the end may be half of a CR LF.
      const parts = text.split(/\r\n|\n|\r(?!$)/);
      text = parts.pop() ?? '';
      yield* parts;
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}

async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const silence = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`nothing came for ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([work, silence]);
  } finally {
    clearTimeout(timer);
  }
}
