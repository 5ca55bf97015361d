-- Copyright (c) 2026, CryoProtect Backup contributors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later

CREATE DATABASE shop;
\connect shop

CREATE TABLE customers (
    id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    mail text NOT NULL UNIQUE
);
INSERT INTO customers (name, mail)
SELECT 'Customer ' || n, 'customer-' || n || '@example.org' FROM generate_series(1, :customers) AS n;

CREATE TABLE orders (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer integer NOT NULL REFERENCES customers,
    price    numeric(9, 2) NOT NULL,
    note     text NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON orders (customer);

CREATE FUNCTION take_orders(count integer) RETURNS void LANGUAGE sql AS $$
    INSERT INTO orders (customer, price, note)
    SELECT 1 + floor(random() * (SELECT max(id) FROM customers)), round((1 + random() * 400)::numeric, 2),
           repeat(md5(random()::text), 2)
    FROM generate_series(1, count);
$$;
SELECT take_orders(:orders);

CREATE TABLE visits (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp()
);
