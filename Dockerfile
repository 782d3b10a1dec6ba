# The same lock as every other route.
#   docker build -t mslib .
#   docker run --rm -v "$PWD/runs:/study/runs" -v "$PWD/results:/study/results" mslib            the default study
#   docker run --rm mslib pytest                                                                 the tests
# The two folders must be writable by user 1000 (or add `--user "$(id -u):$(id -g)" -e HOME=/tmp`).
FROM python:3.11-slim

ENV MSLIB_CONTAINER=mslib:0.1.0 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

RUN apt-get update \
    && apt-get install -y --no-install-recommends git \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 reader \
    && install -d -m 777 -o reader -g reader /study /study/runs /study/results
WORKDIR /study

COPY requirements.txt .
RUN pip install --require-hashes -r requirements.txt

COPY --chown=reader:reader . .
RUN pip install --no-deps -e . && chown -R reader:reader /study && chmod -R a+rwX /study

USER reader
CMD ["snakemake"]
