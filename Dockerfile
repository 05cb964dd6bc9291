# On a CPU: docker build -t ancestral . && docker run -v "$PWD:/data" ancestral train photos/ --out runs/photos
# It is user 1000; where the folder is another's: docker run --user "$(id -u)" ...
FROM python:3.11-slim
ARG TORCH=2.13.0
COPY pyproject.toml README.md LICENSE /package/
COPY src /package/src
RUN pip install --no-cache-dir "torch==$TORCH" --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "/package[builtin,compress,explain,metrics,serve]" \
    && rm -rf /package \
    && useradd --create-home --uid 1000 user
USER 1000
WORKDIR /data
ENTRYPOINT ["ancestral"]
