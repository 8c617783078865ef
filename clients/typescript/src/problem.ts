import type { ProblemDetails, ProblemType } from './generated/types.gen.js';

/** A refusal or failure that the server has answered with, after all repeats. */
export class Problem extends Error {
  override readonly name = 'Problem';
  readonly status: number;
  /** What programs go by; `unreadable-answer` where a proxy has answered, not Backlot. */
  readonly type: ProblemType | 'unreadable-answer';
  readonly requestId: string | undefined;
  /** The whole answer, with the further members of some types, such as `missing`. */
  readonly details: Readonly<Partial<ProblemDetails>>;

  constructor(status: number, details: Partial<ProblemDetails>, requestId?: string | null) {
    super(`${status} ${details.type ?? ''}: ${details.detail ?? 'no detail'}`);
    this.status = status;
    this.type = details.type ?? 'unreadable-answer';
    this.requestId = details.requestId ?? requestId ?? undefined;
    this.details = details;
  }

  /** Return the problem in an answer that is no success. */
  static async of(answer: Response): Promise<Problem> {
    return Problem.from(answer, await answer.text());
  }

  /** Return the problem in an answer whose body was read already: text, or parsed JSON. */
  static from(answer: Response, body: unknown): Problem {
    const id = answer.headers.get('X-Request-Id');
    return new Problem(answer.status, asDetails(body), id);
  }
}

function asDetails(body: unknown): Partial<ProblemDetails> {
  if (typeof body === 'string') {
    try {
      body = JSON.parse(body);
    } catch {
      return { detail: String(body).slice(0, 200) };
    }
  }
  return typeof body === 'object' && body !== null ? body : {};
}
