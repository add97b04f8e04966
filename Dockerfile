# Two stages: dependencies, which change rarely, and code, which changes often.
# docker build -t orch . && docker run --rm -v "$PWD/runs:/work/runs" orch launch recipes/quickstart.yaml

FROM python:3.11-slim-bookworm AS dependencies
# a compiler: DeepSpeed builds its extensions when they are first used
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ git make \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/orch
ENV PATH=/opt/orch/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/orch/src
COPY constraints.txt pyproject.toml ./
# torch first, and pinned, so that nothing else chooses another build of it
RUN pip install --constraint constraints.txt torch
# the dependencies of the package without its code: a change of code does not install them again
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + p['optional-dependencies']['train']))" > requirements.txt \
 && pip install --constraint constraints.txt --requirement requirements.txt

FROM dependencies AS code
COPY . .
RUN pip install --no-deps --editable .
WORKDIR /work
RUN ln -s /opt/orch/src/recipes recipes
ENTRYPOINT ["orch"]
CMD ["--help"]
