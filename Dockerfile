# docker build -t recbole-multdpo .                              CPU
# docker build -t recbole-multdpo --build-arg TORCH=cu126 .      NVIDIA GPUs (docker run --gpus=all)
# docker run --rm -v "$PWD/work:/work" recbole-multdpo --model=LLMRec --dataset=ml-100k
FROM python:3.11-slim

ARG TORCH=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# torch first and alone: its layer stays when only the sources change
RUN pip install --index-url "https://download.pytorch.org/whl/${TORCH}" "torch>=2.6,<2.14"

COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY docs/generate/addresses.py /src/docs/generate/addresses.py
COPY properties /src/properties
COPY experiments /src/experiments
COPY recbole_multdpo /src/recbole_multdpo
RUN pip install "/src[plots]" && rm -r /src

# runs, data sets and caches are written below the working directory, by a user without rights
RUN useradd --create-home --uid 1000 user && mkdir /work && chown user /work
USER 1000
WORKDIR /work
ENTRYPOINT ["recbole-multdpo"]
CMD ["--help"]
