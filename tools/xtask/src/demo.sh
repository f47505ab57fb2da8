#!/bin/sh
# demo.sh SKEP ARGUMENTS...: runs a guest that boots to a login, logs in, looks at its disk, and powers it off. The guest's
# console is standard output; the exit code is skep's, or 1 where something is not as it should be.
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkfifo "$dir/in" "$dir/out"
tee "$dir/console" <"$dir/out" &
"$@" <"$dir/in" >"$dir/out" &
skep=$!
exec 3>"$dir/in"

seen=0
# Waits until the console says a text, after all that was waited for before.
wait_for() {
    until tail -c +$((seen + 1)) "$dir/console" | grep -q "$1"; do
        if ! kill -0 $skep 2>/dev/null; then
            echo "demo: the guest is gone without \"$1\""
            wait $skep
            exit 1
        fi
        sleep 0.2
    done
    seen=$(wc -c <"$dir/console")
}

wait_for 'skep login:'
echo root >&3
wait_for 'root@skep:~#'
echo 'findmnt -no SOURCE,FSTYPE / && df -h / && lspci && echo all is w""ell; poweroff' >&3
wait $skep
code=$?
wait
tail -c +$((seen + 1)) "$dir/console" | grep -q 'all is well' || code=1
exit $code
