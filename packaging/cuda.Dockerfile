# ultraflash on an NVIDIA GPU, about 8 GB; the host needs its driver and nvidia-container-toolkit:
#   docker build -t ultraflash:cuda -f packaging/cuda.Dockerfile .

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/ultraflash
COPY constraints.txt ./
# A layer of its own: torch and CUDA's libraries are most of the image and seldom change.
RUN /opt/ultraflash/bin/python -m pip install --no-cache-dir -c constraints.txt torch
COPY . .
RUN /opt/ultraflash/bin/python -m pip install --no-cache-dir -c constraints.txt '.[generate]'

FROM python:3.11-slim-bookworm
# Triton builds a launcher for each kernel with a C compiler. Debian removes old versions: no pins.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/ultraflash /opt/ultraflash
ENV PATH=/opt/ultraflash/bin:$PATH \
    ULTRAFLASH_HOME=/weights \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,video,utility
# Writable for whoever runs the container: --user is nobody that the image knows.
RUN install -d -m 1777 /weights /work
VOLUME /weights
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["ultraflash"]
CMD ["--help"]
