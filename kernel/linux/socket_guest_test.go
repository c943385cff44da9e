package linux_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
)

// socketLine is all that both sides tell of a socket.
func socketLine(proto, local, remote, state string, ns, inode uint64, uid uint32, owners []string) string {
	sort.Strings(owners)
	who := fmt.Sprint(uid)
	if inode == 0 || strings.HasPrefix(proto, "unix") {
		who = "-" // see Sockets; /proc/net/unix tells none
	}
	return fmt.Sprintf("%s %q %q %s ns=%d ino=%d uid=%s %v", proto, local, remote, state, ns, inode, who, owners)
}

func gotLine(s kernel.Socket) string {
	var owners []string
	for _, o := range s.Owners {
		owners = append(owners, fmt.Sprintf("%d/%d", o.PID, o.FD))
	}
	remote := string(s.Remote)
	if strings.HasPrefix(s.Proto, "unix") {
		remote = "" // not told by /proc
	}
	zero := func(a string) string {
		if rest, ok := strings.CutSuffix(a, ":*"); ok {
			return rest + ":0"
		}
		return a
	}
	local := string(s.Local)
	if !strings.HasPrefix(s.Proto, "unix") {
		local, remote = zero(local), zero(remote)
	}
	return socketLine(s.Proto, local, remote, s.State, s.NetNS, s.Inode, s.UID, owners)
}

func wantLine(s guestlab.Socket) string {
	var owners []string
	for _, o := range s.Owners {
		owners = append(owners, fmt.Sprintf("%d/%d", o.PID, o.FD))
	}
	states := []string{1: "ESTAB", "SYN-SENT", "SYN-RECV", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "UNCONN", "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING"}
	state, local, proto := "", s.Local, s.Proto
	if s.Proto == "unix" {
		local = string(s.Path)
		proto = map[int]string{1: "unix", 2: "unix-dgram", 5: "unix-seqpacket"}[s.Type]
		switch {
		case s.Flags&(1<<16) != 0: // __SO_ACCEPTCON
			state = "LISTEN"
		case s.State == 2 || s.State == 3: // SS_CONNECTING, SS_CONNECTED
			state = "ESTAB"
		default:
			state = "UNCONN"
		}
	} else {
		state = states[s.State]
	}
	return socketLine(proto, local, s.Remote, state, s.NetNS, s.Inode, s.UID, owners)
}

func (s *state) testSockets(t *testing.T) {
	ctx := t.Context()
	spawn := func(p guestlab.Spawn) int {
		pid, err := s.g.Spawn(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	spawn(guestlab.Spawn{Comm: []byte("server"), UID: 1000, Hold: &guestlab.Hold{
		Listen: []string{"tcp4:127.0.0.1:2001", "tcp6:[::]:2002", "tcp6:[::1]:2003", "unix:/tmp/sock one", "unix:@abstract\x00name"},
		Connect: []string{"tcp4:127.0.0.1:2001", "tcp4:127.0.0.1:2001", "tcp6:[::1]:2003", "tcp4:127.0.0.1:2002",
			"unix:/tmp/sock one", "unix:@abstract\x00name"},
		Bind:  []string{"udp4:0.0.0.0:2053", "udp6:[::]:2054", "udp4:127.0.0.1:2055", "unixgram:/tmp/dgram", "unixgram:@gram"},
		Kinds: []string{"socketpair", "epoll"},
	}})
	if err := s.g.Put(ctx, "/tmp/sockets", program(t, "sockets", s.k), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := s.g.Run(ctx, `ip link set lo up; cd /tmp; /tmp/sockets >/tmp/said &
for i in $(seq 600); do [ -s /tmp/said ] && break; sleep 0.1; done; cat /tmp/said
# Tables of their own for new network namespaces, where the kernel can.
echo 1024 2>/dev/null >/proc/sys/net/ipv4/tcp_child_ehash_entries; echo 256 2>/dev/null >/proc/sys/net/ipv4/udp_child_hash_entries; :`)
	if err != nil || out != "ready\n" {
		t.Fatalf("%q, %v", out, err)
	}
	spawn(guestlab.Spawn{Comm: []byte("inner"), NewNS: []string{"net"}, Hold: &guestlab.Hold{
		Listen: []string{"tcp4:0.0.0.0:2001", "tcp6:[::]:2002", "unix:@abstract\x00name"}, Bind: []string{"udp4:0.0.0.0:2053"}}})
	// One that was closed in order (TIME-WAIT), one that nobody answers
	// (SYN-SENT), one half closed (FIN-WAIT-2 and CLOSE-WAIT).
	_, err = s.g.Run(ctx, `
(sleep 100 | nc -l -p 2101 >/dev/null) & sleep 0.5; echo x | nc -w 1 127.0.0.1 2101 >/dev/null &
nc -l -p 2102 -e true & sleep 0.5; nc 127.0.0.1 2102 </dev/null; 
ip addr add 10.77.0.1/32 dev lo; ip route add 10.78.0.0/24 dev lo; nc 10.78.0.9 99 </dev/null >/dev/null 2>&1 &
sleep 2.5; :`)
	if err != nil {
		t.Log(err)
	}
	s.compareSockets(t)
}

// program builds a program of testdata, to be run in a guest of a kernel.
func program(t *testing.T, name string, k *linux.Kernel) []byte {
	t.Helper()
	bin := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "./testdata/"+name)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+map[string]string{"x86_64": "amd64", "i686": "386", "armv7l": "arm"}[k.Arch])
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *state) compareSockets(t *testing.T) {
	t.Helper()
	var missing, extra []string
	// Timers of TCP change states at any moment: try again then.
	for range 5 {
		var got []string
		kinds := make(map[string]int)
		before, err := s.g.Sockets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var list []kernel.Socket
		s.view(t, func(v *linux.View) {
			if list, err = v.Sockets(); err != nil {
				t.Error(err)
			}
		})
		for _, x := range list {
			got = append(got, gotLine(x))
			kinds[x.Proto+" "+x.State]++
			for _, o := range x.Owners {
				if o.Comm == "" {
					t.Errorf("owner %+v has no name", o)
				}
			}
		}
		var want []string
		for _, x := range before {
			want = append(want, wantLine(x))
		}
		missing, extra = without(want, got), without(got, want)
		if len(missing)+len(extra) == 0 {
			t.Logf("%d sockets: %v", len(got), kinds)
			checkPeers(t, list)
			return
		}
	}
	t.Errorf("missing:\n%s\nextra:\n%s", strings.Join(missing, "\n"), strings.Join(extra, "\n"))
}

// checkPeers checks that unix connections name each other.
func checkPeers(t *testing.T, list []kernel.Socket) {
	byInode := make(map[uint64]kernel.Socket)
	for _, s := range list {
		byInode[s.Inode] = s
	}
	pairs := 0
	for _, s := range list {
		if s.Proto != "unix" || s.Peer == 0 {
			continue
		}
		p := byInode[s.Peer]
		if p.State == "LISTEN" || p.Peer == 0 {
			continue // not accepted yet
		}
		if p.Peer != s.Inode || s.Remote != p.Local || p.Remote != s.Local {
			t.Errorf("%+v\nhas the peer\n%+v", s, p)
		}
		pairs++
	}
	if pairs < 4 {
		t.Errorf("%d unix sockets with peers", pairs)
	}
}

// without is the lines of a that are not in b, as multisets.
func without(a, b []string) (out []string) {
	b = slices.Clone(b)
	for _, x := range a {
		if i := slices.Index(b, x); i >= 0 {
			b = slices.Delete(b, i, i+1)
		} else {
			out = append(out, x)
		}
	}
	return out
}

// testSocketStorm opens and closes sockets while they are listed: what stays
// must be in every list that comes without an error.
func (s *state) testSocketStorm(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.g.Run(ctx, `(while :; do echo y | nc -l -p 2201 >/dev/null; done) & L=$!
i=0; while [ $i -lt 40 ]; do echo x | nc -w 1 127.0.0.1 2201 >/dev/null 2>&1; logger x 2>/dev/null; i=$((i+1)); done; kill $L`)
		done <- err
	}()
	lists, failed := 0, 0
	for {
		select {
		case <-done:
			t.Logf("%d lists, %d failed", lists, failed)
			if failed*100 > lists {
				t.Errorf("%d of %d lists failed", failed, lists)
			}
			return
		default:
		}
		s.view(t, func(v *linux.View) {
			list, err := v.Sockets()
			lists++
			if err != nil {
				failed++
				t.Log(err)
				return
			}
			for _, port := range []string{"127.0.0.1:2001", "[::]:2002", "[::1]:2003", "127.0.0.1:2055"} {
				if !slices.ContainsFunc(list, func(x kernel.Socket) bool {
					return string(x.Local) == port && (x.State == "LISTEN" || x.State == "UNCONN") && len(x.Owners) == 1
				}) {
					t.Fatalf("list %d lacks %s", lists, port)
				}
			}
		})
	}
}
