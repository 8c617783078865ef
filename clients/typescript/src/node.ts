/** What only Node has: sources of uploads from the disk. */
import { open } from 'node:fs/promises';

import type { Source } from './sources.js';

/** Return a source of a file by its path. Parts that are under way are held in memory. */
export async function fileSource(path: string): Promise<Source> {
  const file = await open(path);
  try {
    const { size } = await file.stat();
    return {
      size,
      close: () => file.close(),
      read: async (first, end) => {
        const bytes = new Uint8Array(end - first);
        for (let at = 0; at < bytes.length; ) {
          const { bytesRead } = await file.read(bytes, at, bytes.length - at, first + at);
          if (bytesRead === 0) {
            throw new Error(`${path} has become shorter than ${end} bytes`);
          }
          at += bytesRead;
        }
        return bytes;
      },
    };
  } catch (error) {
    await file.close();
    throw error;
  }
}
