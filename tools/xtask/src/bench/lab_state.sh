# What `cargo xtask bench lab-state` has a lab do for one round: `state.sh skep MEMORY PROGRAM` or `state.sh qemu PROGRAM ARGUMENTS...`. Each figure is a line `state: WHAT: NUMBER`, in microseconds.
# It waits by reading pipes: a lab whose clock counts instructions counts those of a loop as well.
set -e
monitor=$1
shift
rm -rf /tmp/state
mkdir /tmp/state
cd /tmp/state
ip link set lo up
mkfifo said asked.in asked.out waits

# until_line TEXT: reads lines until one has the text, and prints it.
until_line() {
    while read -r line; do
        case $line in *"$1"*) printf '%s\n' "$line"; return ;; esac
    done
    echo "it ended before it said '$1'" >&2
    return 1
}
figure() { echo "state: $1: $(printf '%s' "$2" | sed -n "s/.*\"$3\":\([0-9]*\).*/\1/p")"; }

if [ "$monitor" = skep ]; then
    memory=$1
    shift
    "$@" hello first end=halt --memory "$memory" --control here.sock >said 2>/dev/null &
    exec 3<said
    until_line 'skep hello: up' <&3 >/dev/null
    saved=$("$@" ctl --json here.sock save put-away --quit)
    figure 'saved, standstill' "$saved" standstill-us
    figure 'saved, in all' "$saved" elapsed-us
    cat <&3 >/dev/null
    wait

    "$@" restore put-away --control there.sock >/dev/null 2>&1 &
    until stats=$("$@" ctl --json there.sock stats 2>/dev/null) && [ "${stats#*first-instruction-us\":[0-9]}" != "$stats" ]; do sleep 0.1; done
    figure 'restored, to the first instruction' "$stats" first-instruction-us

    "$@" receive tcp:127.0.0.1:0 --serial none >/dev/null 2>waits &
    exec 4<waits
    place=$(until_line tcp: <&4)
    moved=$("$@" ctl --json there.sock migrate "${place##* }")
    figure 'migrated, standstill' "$moved" standstill-us
    figure 'migrated, in all' "$moved" elapsed-us
else
    # Its figures are in milliseconds.
    of() { echo "state: $1: $(printf '%s' "$2" | tr -dc 0-9)000"; }
    "$@" -incoming tcp:127.0.0.1:4444 >/dev/null 2>&1 &
    "$@" -monitor pipe:/tmp/state/asked >said 2>/dev/null &
    exec 3<said 5>asked.in 6<asked.out
    until_line 'skep hello: up' <&3 >/dev/null
    printf 'migrate_set_parameter max-bandwidth 100G\nstop\nmigrate "exec:cat > put-away"\ninfo migrate\n' >&5
    of 'saved, in all' "$(until_line 'total time: ' <&6)"
    printf 'cont\nmigrate tcp:127.0.0.1:4444\ninfo migrate\n' >&5
    total=$(until_line 'total time: ' <&6)
    of 'migrated, standstill' "$(until_line 'downtime: ' <&6)"
    of 'migrated, in all' "$total"
fi
# What is left of it.
kill $(jobs -p) 2>/dev/null || true
