#!/bin/sh
# report [HEX]: the processor's evidence over up to 64 bytes, in base64.
entry=/sys/kernel/config/tsm/report/guest
mkdir -p $entry || exit
printf "$(printf '%-128s' "$1" | tr ' ' 0 | sed 's/../\\x&/g')" >$entry/inblob
base64 -w 0 $entry/outblob && echo
