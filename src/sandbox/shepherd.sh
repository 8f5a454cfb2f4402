# Runs one PostgreSQL server for as long as its owner lives.
#
#   sh -c "$(cat shepherd.sh)" shepherd ROOT HOME SERVER ARGUMENT...
#
# Standard input is a pipe whose other end only the owner holds: the end of it means that the owner is done or
# dead, however it died. Then the server is stopped at once, HOME is removed, and ROOT with its lock file too
# when it was the last server's. A server that ends by itself ends the shepherd with its status and removes nothing.
root=$1 home=$2
shift 2
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
(
    while read -r _ <&3; do :; done
    : >"$home/abandoned"
    kill -QUIT "$server" 2>/dev/null
) &
watcher=$!
wait "$server"
status=$?
kill "$watcher" 2>/dev/null
if [ -e "$home/abandoned" ]; then
    rm -rf "$home"
    set -- "$root"/[0-9]*
    [ -e "$1" ] || rm -rf "$root" "$root.lock"
fi
exit "$status"
