import { createClient, type Client } from './generated/client/index.js';
import * as api from './generated/sdk.gen.js';
import type {
  Comment,
  CommentDeleted,
  GetVideoStatsData,
  LikeState,
  ListCommentsData,
  ListLikedVideosData,
  ListVideosData,
  Video,
  VideoStats,
} from './generated/types.gen.js';
import { follow, listen, type ListenOptions, type LiveEvent, type LiveOptions } from './live.js';
import { items } from './pages.js';
import { Positions } from './positions.js';
import { Problem } from './problem.js';
import { Retries, type RetryOptions } from './retries.js';
import { blobSource, type Source } from './sources.js';
import { Tokens, type TokenSource } from './tokens.js';
import { Transport, type Fetch } from './transport.js';
import { upload, type Uploaded, type UploadOptions } from './upload.js';

export interface BacklotOptions {
  /** Where the API is, without a slash at the end. */
  baseUrl: string;
  /** Without it the client reads what is public. */
  token?: TokenSource;
  /** A position that another client has handed over: reads see what that one has done. */
  position?: string;
  retries?: RetryOptions;
  fetch?: Fetch;
}

/** A client of one user. All that it throws where the server refuses is a `Problem`. */
export class Backlot {
  /**
   * For any call of the API: `shareVideo({ client: backlot.client, throwOnError: true, … })`, with
   * the same tokens, repeats and positions.
   */
  readonly client: Client;
  readonly #transport: Transport;

  constructor(options: BacklotOptions) {
    const positions = new Positions(options.position);
    const retries = new Retries(options.retries);
    this.#transport = new Transport(new Tokens(options.token), positions, retries, options.fetch);
    this.client = createClient({
      baseUrl: options.baseUrl.replace(/\/+$/, ''),
      fetch: (request) => this.#transport.send(request as Request),
    });
    this.client.interceptors.error.use((error, response, _request, { throwOnError }) =>
      throwOnError === true && (response as Response | undefined) !== undefined
        ? Problem.from(response, error)
        : error,
    );
  }

  /** How much of the log this client's own commands need; undefined before the first one. */
  get position(): string | undefined {
    return this.#transport.positions.latest;
  }

  /** Take over another client's position. */
  see(position: string): void {
    this.#transport.positions.add(position);
  }

  async video(videoId: string): Promise<Video> {
    return (await api.getVideo(this.#of(videoId))).data;
  }

  async stats(videoId: string, query: GetVideoStatsData['query'] = {}): Promise<VideoStats> {
    return (await api.getVideoStats({ ...this.#of(videoId), query })).data;
  }

  async like(videoId: string): Promise<LikeState> {
    return (await api.likeVideo(this.#of(videoId))).data;
  }

  async unlike(videoId: string): Promise<LikeState> {
    return (await api.unlikeVideo(this.#of(videoId))).data;
  }

  /** Post a comment, or a reply to the one of `parentId`. */
  async comment(videoId: string, content: string, parentId?: string): Promise<Comment> {
    const body = parentId === undefined ? { content } : { content, parentId };
    return (await api.postComment({ ...this.#of(videoId), body })).data;
  }

  async editComment(commentId: string, content: string): Promise<Comment> {
    const path = { comment_id: commentId };
    return (await api.editComment({ ...this.#each, path, body: { content } })).data;
  }

  async deleteComment(commentId: string): Promise<CommentDeleted> {
    return (await api.deleteComment({ ...this.#each, path: { comment_id: commentId } })).data;
  }

  /** Yield the comments of a video, newest first. */
  comments(videoId: string, query: ListCommentsData['query'] = {}): AsyncGenerator<Comment, void> {
    return items(async (cursor) => {
      const page = { ...query, ...(cursor !== undefined && { cursor }) };
      return (await api.listComments({ ...this.#of(videoId), query: page })).data;
    });
  }

  /** Yield the videos of a list, newest first. */
  videos(query: ListVideosData['query'] = {}): AsyncGenerator<Video, void> {
    return items(async (cursor) => {
      const page = { ...query, ...(cursor !== undefined && { cursor }) };
      return (await api.listVideos({ ...this.#each, query: page })).data;
    });
  }

  /** Yield what the user likes, newest like first. */
  liked(query: ListLikedVideosData['query'] = {}): AsyncGenerator<Video, void> {
    return items(async (cursor) => {
      const page = { ...query, ...(cursor !== undefined && { cursor }) };
      return (await api.listLikedVideos({ ...this.#each, query: page })).data;
    });
  }

  /** Upload a `File`, or another source, in parallel parts; see `UploadOptions.resume`. */
  async upload(film: Blob | Source, options: UploadOptions): Promise<Uploaded> {
    const source = film instanceof Blob ? blobSource(film) : film;
    try {
      return await upload(this.client, this.#transport, source, options);
    } finally {
      await source.close?.();
    }
  }

  /** Yield likes and comments as they change: `for await (const event of backlot.live(id))`. */
  live(videoId: string, options: LiveOptions = {}): AsyncGenerator<LiveEvent, void> {
    const path = { video_id: videoId };
    const url = this.client.buildUrl({ url: '/videos/{video_id}/events', path });
    return follow(this.#transport, url, options);
  }

  /** The same by `EventSource`, which browsers show in their tools; return what ends it. */
  listen(
    videoId: string,
    onEvent: (event: LiveEvent) => void,
    options: ListenOptions = {},
  ): () => void {
    return listen(this.client, this.#transport, videoId, onEvent, options);
  }

  get #each() {
    return { client: this.client, throwOnError: true } as const;
  }

  #of(videoId: string) {
    return { ...this.#each, path: { video_id: videoId } } as const;
  }
}
