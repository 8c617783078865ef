# One image for every role: its command and BACKLOT_ROLES say what a container does.
# Base images are pinned by their full version; who also wants their bytes pinned adds the digest
# that `docker buildx imagetools inspect` shows: python:…@sha256:…

FROM python:3.13.14-slim-trixie AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PATH=/opt/backlot/bin:$PATH
RUN python -m venv /opt/backlot
WORKDIR /source
# Before the code, so that changing it does not install them again. Wheels only: nothing is compiled.
COPY requirements.txt ./
RUN pip install --require-hashes --only-binary=:all: -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY backlot backlot
COPY benchmarks benchmarks
COPY commands commands
COPY domain domain
COPY engine engine
COPY infra infra
COPY projections projections
COPY readapi readapi
COPY web web
COPY workers workers
RUN pip install --no-deps --no-build-isolation .

FROM python:3.13.14-slim-trixie AS base
LABEL org.opencontainers.image.title="Backlot" \
      org.opencontainers.image.description="The engagement back end of a video platform" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/backlot backlot \
    && install --directory --owner backlot --group backlot --mode 0700 \
        /var/lib/backlot /var/lib/backlot-seals /var/cache/backlot
ENV PATH=/opt/backlot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/var/cache/backlot \
    BACKLOT_HOST=0.0.0.0 \
    BACKLOT_DATA_DIR=/var/lib/backlot
WORKDIR /var/lib/backlot
EXPOSE 8000
# Each role has a health check of its own: see docker-compose.yml.
HEALTHCHECK NONE
ENTRYPOINT ["backlot"]
CMD ["up"]

# With Whisper and ffmpeg (`--target whisper`): some 2 GB more, most of it torch. Its packages are
# not in the list with hashes; what is in that list keeps its version.
FROM packages AS packages-whisper
ARG WHISPER_VERSION=20250625
# PyTorch without CUDA, which alone would be 3 GB; for graphics cards, pass an index that has both.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip freeze --exclude backlot > /tmp/installed.txt \
    && pip install --constraint /tmp/installed.txt --index-url "${TORCH_INDEX}" torch \
    && pip install --constraint /tmp/installed.txt "openai-whisper==${WHISPER_VERSION}"

FROM base AS whisper
# Debian keeps only the newest build of a package, so a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg \
    && rm -rf /var/lib/apt/lists/*
COPY --from=packages-whisper /opt/backlot /opt/backlot
USER 10001:10001

# The last stage is what `docker build` makes unless told otherwise.
FROM base AS runtime
COPY --from=packages /opt/backlot /opt/backlot
USER 10001:10001
