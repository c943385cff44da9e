package nbd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// BenchmarkRequest is what one request costs a server's process, if it comes some time behind the answer to the one before
// it, as a guest's do, and as QEMU sends it: a write's header first, its payload then. It reports CPU time and how often a
// thread of the process waited; also for nbdkit's file plugin.
func BenchmarkRequest(b *testing.B) {
	file := filepath.Join(b.TempDir(), "image")
	if err := os.WriteFile(file, randomBytes(16<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	type server struct {
		name, sock string
		pid        int
	}
	sock, cmd := startServer(b, file)
	servers := []server{{"ours", sock, cmd.Process.Pid}}
	if _, err := exec.LookPath("nbdkit"); err == nil {
		sock := filepath.Join(socketDir(b), "s")
		cmd := exec.Command("nbdkit", "-f", "-U", sock, "file", file)
		startTool(b, cmd, sock)
		servers = append(servers, server{"nbdkit", sock, cmd.Process.Pid})
	}
	for _, q := range []request{
		{typ: cmdWrite, len: 4096}, {typ: cmdRead, len: 4096}, {typ: cmdWrite, len: 1 << 20}, {typ: cmdRead, len: 1 << 20}, {typ: cmdFlush},
	} {
		for _, gap := range []time.Duration{0, 300 * time.Microsecond, 4 * time.Millisecond, 25 * time.Millisecond} {
			for _, s := range servers {
				b.Run(fmt.Sprintf("%s-%dK/gap=%v/%s", strings.ReplaceAll(cmdName(q.typ), " ", "-"), q.len>>10, gap, s.name), func(b *testing.B) {
					conn, err := net.Dial("unix", s.sock)
					if err != nil {
						b.Fatal(err)
					}
					defer conn.Close()
					h := &hail{conn: conn}
					if err := h.enter(b.Context(), "", nil); err != nil {
						b.Fatal(err)
					}
					in := bufio.NewReaderSize(conn, 2<<20)
					payload := make([]byte, q.len)
					cpu, waited := processTime(b, s.pid), waits(b, s.pid)
					for b.Loop() {
						conn.Write(appendRequest(nil, q))
						if q.typ == cmdWrite {
							conn.Write(payload)
						}
						if err := skipReply(in, q); err != nil {
							b.Fatal(err)
						}
						time.Sleep(gap)
					}
					b.ReportMetric(float64((processTime(b, s.pid)-cpu).Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
					b.ReportMetric(float64(waits(b, s.pid)-waited)/float64(b.N), "waits/op")
				})
			}
		}
	}
}

// skipReply takes a whole reply.
func skipReply(in *bufio.Reader, q request) error {
	for {
		b, err := in.Peek(simpleLen)
		if err != nil {
			return err
		}
		n, done := simpleLen, true
		switch be.Uint32(b) {
		case magicSimple:
			if q.typ == cmdRead {
				n += int(q.len)
			}
		case magicStructured:
			if b, err = in.Peek(structuredLen); err != nil {
				return err
			}
			n, done = structuredLen+int(be.Uint32(b[16:])), be.Uint16(b[4:])&chunkDone != 0
		default:
			return ErrProtocol
		}
		if _, err := io.CopyN(io.Discard, in, int64(n)); err != nil || done {
			return err
		}
	}
}

// waits is how often threads of a process have waited so far.
func waits(t testing.TB, pid int) (n int64) {
	t.Helper()
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		_, rest, _ := strings.Cut(string(text), "\nvoluntary_ctxt_switches:\t")
		line, _, _ := strings.Cut(rest, "\n")
		k, err := strconv.ParseInt(line, 10, 64)
		if err != nil && len(text) > 0 {
			t.Fatal(err)
		}
		n += k
	}
	return n
}
