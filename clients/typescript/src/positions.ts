/** How much of the log the own commands need: sent with each read, which then sees them. */
export class Positions {
  #latest: string | undefined;

  constructor(latest?: string) {
    this.#latest = latest;
  }

  /** What `Backlot-Min-Position` says now; to be handed to another client, or kept for later. */
  get latest(): string | undefined {
    return this.#latest;
  }

  /** Take in the position of a command's answer, or one that another client has handed over. */
  add(token: string): void {
    this.#latest = this.#latest === undefined ? token : merged(this.#latest, token);
  }
}

/** Return the position that includes both; the second one where they are not of one store. */
export function merged(one: string, other: string): string {
  const [left, right] = [decoded(one), decoded(other)];
  if (left === undefined || right === undefined || left.store !== right.store) {
    return other;
  }
  const events = Math.max(left.events, right.events);
  const telemetry = Math.max(left.telemetry, right.telemetry);
  const numbers = telemetry > 0 ? `${events}:${telemetry}` : `${events}`;
  return encoded(`${left.store}:${numbers}`);
}

interface Position {
  store: string;
  events: number;
  telemetry: number;
}

function decoded(token: string): Position | undefined {
  try {
    const text = atob(token.replaceAll('-', '+').replaceAll('_', '/'));
    const found = /^(\w+):(\d+)(?::(\d+))?$/.exec(text);
    return found?.[1] === undefined
      ? undefined
      : { store: found[1], events: Number(found[2]), telemetry: Number(found[3] ?? 0) };
  } catch {
    return undefined;
  }
}

function encoded(text: string): string {
  return btoa(text).replaceAll('+', '-').replaceAll('/', '_').replaceAll('=', '');
}
