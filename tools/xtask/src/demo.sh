#!/bin/sh
# demo.sh [--button] SKEP ARGUMENTS...: runs a guest that boots to a login, logs in, looks at its disk, and powers it off, by the power button
# if it is asked to. The guest's console is standard output; the exit code is skep's, or 1 where something is not as it should be.
button=
if [ "$1" = --button ]; then
    button=yes
    shift
fi
program=$1
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkfifo "$dir/in" "$dir/out"
tee "$dir/console" <"$dir/out" &
"$@" --control "$dir/control" <"$dir/in" >"$dir/out" &
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
start=$seen
look='findmnt -no SOURCE,FSTYPE / && df -h / && lspci && echo all is w""ell'
if [ -z "$button" ]; then
    echo "$look; poweroff" >&3
else
    echo "efibootmgr && $look" >&3
    wait_for 'all is well'
    # Whoever listens to the button may not be there yet.
    echo 'until journalctl -u systemd-logind | grep "Watching system buttons"; do sleep 1; done; echo the button is h""eard' >&3
    wait_for 'the button is heard'
    "$program" ctl "$dir/control" power-button
fi
wait $skep
code=$?
wait
tail -c +$((start + 1)) "$dir/console" | grep -q 'all is well' || code=1
exit $code
