# The proxy alone, as an ordinary user:  docker build -t shardway .
#   docker run -p 6432:6432 -v ./shardway.toml:/etc/shardway/shardway.toml:ro shardway
# The file must be readable by everybody and say server.listen = ["0.0.0.0:6432"]: the default is loopback, which is the
# container's own.

FROM rust:1.95-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libclang1-14 libclang-common-14-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
# What the binary is made of, and nothing else: a change in docs or tests builds nothing anew.
COPY Cargo.toml Cargo.lock ./
COPY src ./src
COPY benches ./benches
RUN cargo build --release --locked --bin shardway

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home --shell /usr/sbin/nologin shardway
COPY --from=build /build/target/release/shardway /usr/local/bin/shardway
USER shardway
EXPOSE 6432 6433
# SIGTERM drains: transactions end, then the process.
STOPSIGNAL SIGTERM
ENTRYPOINT ["shardway"]
CMD ["serve", "--config", "/etc/shardway/shardway.toml"]
