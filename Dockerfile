# buzzer on the RAPIDS image, for a machine with an NVIDIA driver and the container toolkit.
#   docker build -t buzzer .
#   docker run --rm --gpus all -v "$PWD/results/local:/work/results/local" buzzer run booking --engine pandas,polars,cudf
# Limits inside a container are enforced by polling, unless it may manage control groups; `buzzer env` says which.
# hadolint accepts it. Not built yet: no machine with Docker and a GPU was available.
ARG RAPIDS=26.10-cuda13-py3.12
FROM rapidsai/base:${RAPIDS}

# Root, because a mounted folder of results belongs to another user than the image's.
# hadolint ignore=DL3002,DL3066
USER root
# The distribution of the image has one version of each.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /work
# .git too: records name the commit that git reads from it.
COPY . /work
RUN pip install --no-cache-dir -e '.[weights,trees,kernels]' 'nvidia-ml-py>=12.560'
ENV BUZZER_CACHE=/work/.buzzer
ENTRYPOINT ["buzzer"]
CMD ["env"]
