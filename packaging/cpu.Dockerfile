# ultraflash on a CPU, about 1.2 GB:
#   docker build -t ultraflash -f packaging/cpu.Dockerfile .

FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/ultraflash
COPY constraints.txt ./
# A layer of its own: torch is most of the image and seldom changes.
RUN /opt/ultraflash/bin/python -m pip install --no-cache-dir -c constraints.txt --index-url "$TORCH_INDEX" torch
COPY . .
RUN /opt/ultraflash/bin/python -m pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/ultraflash /opt/ultraflash
ENV PATH=/opt/ultraflash/bin:$PATH \
    ULTRAFLASH_HOME=/weights
# Writable for whoever runs the container: --user is nobody that the image knows.
RUN install -d -m 1777 /weights /work
VOLUME /weights
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["ultraflash"]
CMD ["--help"]
