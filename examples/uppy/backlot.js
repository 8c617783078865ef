// What Uppy's AwsS3 asks of a bucket, asked of Backlot: parts go to signed URLs, and the upload
// itself is begun, listed, completed and given up at Backlot.

export class Backlot {
  constructor(server, token) {
    this.server = server;
    this.headers = { Authorization: `Bearer ${token}` };
    this.partSizes = new Map();
  }

  // Begin an upload, or find the one of the same file that was cut off in this browser.
  async begin(file, details) {
    const known = `backlot:${file.name}:${file.size}:${file.data.lastModified}`;
    const former = localStorage.getItem(known);
    let upload = former && (await this.call("GET", `/uploads/${former}`).catch(() => null));
    if (upload?.status !== "started") {
      upload = await this.call("POST", "/uploads", {
        filename: file.name,
        contentType: file.type,
        sizeBytes: file.size,
        ...details,
      });
      localStorage.setItem(known, upload.uploadId);
    }
    // Uppy asks for the size of parts by the size of the file.
    this.partSizes.set(file.size, upload.partSizeBytes);
    return { uploadId: upload.uploadId, key: upload.uploadId };
  }

  getChunkSize = ({ size }) => this.partSizes.get(size);

  // Return where Uppy sends a request, and with which headers.
  signRequest = async ({ method, uploadId, partNumber }) => {
    if (method === "PUT") {
      const { parts } = await this.call("POST", `/uploads/${uploadId}/part-urls`, {
        numbers: [partNumber],
      });
      return { url: parts[0].url };
    }
    return { url: `${this.server}/uploads/${uploadId}/s3`, headers: this.headers };
  };

  async call(method, path, body) {
    const answer = await fetch(this.server + path, {
      method,
      headers: { ...this.headers, ...(body && { "Content-Type": "application/json" }) },
      body: body && JSON.stringify(body),
    });
    const told = await answer.json();
    if (!answer.ok) throw new Error(told.detail);
    return told;
  }
}
