FROM python:3.13-slim
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY celery_guardrails celery_guardrails
RUN pip install --no-cache-dir '.[django,flask,prometheus,sentry]'
COPY example_project example_project
# A worker needs no root; and the exec form of CMD lets it see SIGTERM itself, not through a shell.
RUN useradd --create-home worker
USER worker
CMD ["celery", "-A", "example_project.shop", "worker", "--loglevel", "INFO"]
