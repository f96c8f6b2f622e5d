-- Runs once, when the server's data folder is initialised.
CREATE DATABASE auth;
CREATE DATABASE booking;
CREATE DATABASE stock;
CREATE DATABASE payment;
ALTER ROLE boxoffice SET statement_timeout = '2s';
ALTER ROLE boxoffice SET lock_timeout = '500ms';
ALTER ROLE boxoffice SET transaction_timeout = '8s';
