/** A page of a list, as the API answers it. */
export interface Page<T> {
  items: T[];
  nextCursor?: string;
}

/** Yield the items of all pages; a page is read when its first item is wanted. */
export async function* items<T>(
  read: (cursor: string | undefined) => Promise<Page<T>>,
): AsyncGenerator<T, void, undefined> {
  let cursor: string | undefined;
  do {
    const page = await read(cursor);
    yield* page.items;
    cursor = page.nextCursor;
  } while (cursor !== undefined);
}
