# DeFeat on CPU and, with `docker run --gpus all`, on NVIDIA GPUs: the wheels of PyTorch contain CUDA.
#   docker build -t defeat .
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" defeat train --data DATA --backbone resnet18 --out runs/teacher
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
COPY . /src
RUN pip install "/src[export,weights]" && rm -r /src && useradd --create-home --uid 1000 user

USER 1000
WORKDIR /work
ENTRYPOINT ["defeat"]
CMD ["--help"]
