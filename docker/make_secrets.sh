#!/bin/sh
# Make the secrets that compose.yaml mounts, once: random, in docker/secrets/, which only you may enter. The files themselves
# can be read by all, for in the containers the users have other numbers.
set -eu
cd "$(dirname "$0")"
mkdir -m 700 secrets
random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
key=$(random 10) secret=$(random 20)
random 24 > secrets/database_password
cat > secrets/store_identities <<END
{"identities": [{"name": "perceptio", "credentials": [{"accessKey": "$key", "secretKey": "$secret"}], "actions": ["Admin"]}]}
END
cat > secrets/aws_credentials <<END
[default]
aws_access_key_id = $key
aws_secret_access_key = $secret
END
chmod 644 secrets/*
