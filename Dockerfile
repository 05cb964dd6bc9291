# On a CPU: docker build -t ancestral . && docker run -v "$PWD:/data" ancestral train photos/ --out runs/photos
FROM python:3.11-slim
COPY pyproject.toml README.md LICENSE /package/
COPY src /package/src
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "/package[builtin,compress,explain,metrics,serve]" \
    && rm -rf /package \
    && useradd --create-home user
USER user
WORKDIR /data
ENTRYPOINT ["ancestral"]
