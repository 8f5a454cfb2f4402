CREATE TABLE countries (
    code text PRIMARY KEY,
    name text NOT NULL
);
CREATE TABLE customers (
    id      bigint PRIMARY KEY,
    name    text NOT NULL,
    email   text NOT NULL,
    country text REFERENCES countries
);
CREATE TABLE orders (
    customer_id bigint NOT NULL REFERENCES customers,
    id          bigint NOT NULL,
    placed_at   timestamptz NOT NULL,
    total       numeric(12, 2) NOT NULL,
    status      text NOT NULL DEFAULT 'open',
    PRIMARY KEY (customer_id, id)
);
CREATE TABLE order_items (
    customer_id bigint NOT NULL,
    order_id    bigint NOT NULL,
    line        integer NOT NULL,
    product     text NOT NULL,
    quantity    integer NOT NULL,
    price       numeric(12, 2) NOT NULL,
    PRIMARY KEY (customer_id, order_id, line),
    FOREIGN KEY (customer_id, order_id) REFERENCES orders
);
CREATE TABLE shipments (
    region      text NOT NULL,
    id          bigint NOT NULL,
    customer_id bigint NOT NULL,
    carrier     text NOT NULL,
    shipped_on  date,
    PRIMARY KEY (region, id)
);
CREATE TABLE events (
    day     date NOT NULL,
    id      bigint NOT NULL,
    kind    text NOT NULL,
    payload jsonb,
    PRIMARY KEY (day, id)
);
