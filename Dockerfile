# CGRSeg with the command line as entry point, for a CPU:
#
#     docker build -t cgrseg .
#
# and for NVIDIA GPUs (PyTorch's own packages bring CUDA; the host needs the driver and NVIDIA's container toolkit):
#
#     docker build -t cgrseg:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#
# docs/installation.md shows how it is run.  EXTRAS adds optional parts, e.g. EXTRAS=export,web.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=export,web
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/cgrseg
ENV PATH=/opt/cgrseg/bin:$PATH
WORKDIR /source
COPY constraints.txt ./
# PyTorch alone comes from its own index, which lacks some of the pinned versions of other packages.
RUN pip install --no-deps --index-url "${TORCH_INDEX}" --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE run_cgrseg.py ./
COPY cgrseg cgrseg
RUN pip install --constraint constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
COPY --from=build /opt/cgrseg /opt/cgrseg
ENV PATH=/opt/cgrseg/bin:$PATH HOME=/cache XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
# Any user may write to the volumes: `docker run --user` chooses one.
RUN useradd --no-create-home --home-dir /cache --uid 1000 cgrseg \
    && mkdir /cache /data \
    && chmod 1777 /cache /data
USER 1000:1000
WORKDIR /data
VOLUME ["/cache", "/data"]
ENTRYPOINT ["cgrseg"]
CMD ["--help"]
