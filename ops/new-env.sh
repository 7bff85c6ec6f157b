#!/bin/sh
# Prints .env.example with a fresh password in each empty place of its first part: sh ops/new-env.sh >.env
set -eu
umask 077
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
fill=yes
while IFS= read -r line; do
    case $line in
    '# ---'*) fill= ;;
    *_PASSWORD=) [ -z "$fill" ] || line=$line$(password) ;;
    esac
    printf '%s\n' "$line"
done <"$(dirname "$0")/../.env.example"
