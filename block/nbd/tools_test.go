package nbd

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmscope/block"
)

// other people's clients against the server.

const testSize = 16 << 20

// serveImage serves a file that has a hole, in this process.
func serveImage(t *testing.T) (uri, file string, content []byte) {
	t.Helper()
	file, content = imageFile(t, testSize)
	d, err := OpenFile(file, false)
	if err != nil {
		t.Fatal(err)
	}
	sock := serve(t, &Server{Exports: []Export{{Name: "disk", Description: "a disk", Device: d}, {Name: "ro", Device: d, ReadOnly: true}}})
	t.Cleanup(func() { d.Close() })
	return unixURI(sock, "disk"), file, content
}

func sameFile(t *testing.T, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: content differs", name)
	}
}

func TestNbdinfo(t *testing.T) {
	tool(t, "nbdinfo")
	uri, _, _ := serveImage(t)
	var got struct {
		Exports []map[string]any
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--list", uri)), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Exports) != 2 {
		t.Fatalf("exports: %v", got.Exports)
	}
	for i, want := range []map[string]any{
		{"export-name": "disk", "description": "a disk", "is_read_only": false, "can_trim": true, "can_zero": true, "can_fua": true},
		{"export-name": "ro", "is_read_only": true, "can_trim": false, "can_zero": false},
	} {
		want["export-size"] = float64(testSize)
		for _, k := range []string{"can_flush", "can_df", "can_cache", "can_multi_conn"} {
			want[k] = true
		}
		for k, v := range want {
			if got.Exports[i][k] != v {
				t.Errorf("export %d: %s is %v, want %v", i, k, got.Exports[i][k], v)
			}
		}
	}
	var extents []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--map", uri)), &extents); err != nil {
		t.Fatal(err)
	}
	if len(extents) != 3 || extents[1].Offset != testSize/4 || extents[1].Length != testSize/4 || extents[1].Type != 3 {
		t.Errorf("map: %+v", extents)
	}
	if out, err := exec.Command("nbdinfo", "--can", "fast-zero", uri).CombinedOutput(); err != nil {
		t.Errorf("--can fast-zero: %v: %s", err, out)
	}
	if out, err := exec.Command("nbdinfo", strings.Replace(uri, "/disk", "/nothing", 1)).CombinedOutput(); err == nil {
		t.Errorf("an export that is not there: %s", out)
	}
}

func TestNbdcopy(t *testing.T) {
	tool(t, "nbdcopy")
	uri, file, content := serveImage(t)
	out := filepath.Join(t.TempDir(), "out")
	run(t, "nbdcopy", uri, out)
	sameFile(t, out, content)
	content = slices.Clone(content)
	copy(content, bytes.Repeat([]byte("new"), 1<<20))
	if err := os.WriteFile(out, content, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "nbdcopy", "--connections=4", "--requests=16", "--flush", out, uri)
	sameFile(t, file, content)
	run(t, "nbdcopy", "--allocated", "--synchronous", "--connections=1", out, uri)
	sameFile(t, file, content)
}

func TestQemuImg(t *testing.T) {
	tool(t, "qemu-img")
	uri, file, content := serveImage(t)
	if out := run(t, "qemu-img", "info", uri); !strings.Contains(out, fmt.Sprintf("(%d bytes)", testSize)) {
		t.Errorf("info: %s", out)
	}
	var m []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "-f", "raw", "--output=json", uri)), &m); err != nil {
		t.Fatal(err)
	}
	if len(m) != 3 || m[1].Data || !m[1].Zero || m[1].Start != testSize/4 || m[1].Length != testSize/4 {
		t.Errorf("map: %+v", m)
	}
	dir := t.TempDir()
	qcow := filepath.Join(dir, "qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", uri, qcow)
	// And back, over other content.
	if err := os.WriteFile(file, randomBytes(testSize)[1:], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, testSize); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "qcow2", "-O", "raw", qcow, uri)
	sameFile(t, file, content)
	for _, load := range []string{"-s 4096 -c 500 -d 16", "-s 4096 -c 500 -d 16 -w", "-s 1M -c 50 -d 4", "-s 1M -c 50 -d 4 -w",
		"-s 4096 -c 100 -d 4 -w --flush-interval 4 --pattern 7"} {
		run(t, "qemu-img", append(append([]string{"bench", "-f", "raw"}, strings.Fields(load)...), uri)...)
	}
}

// other people's servers under the client.

// startNbdkit runs nbdkit on a Unix socket.
func startNbdkit(t *testing.T, args ...string) (uri string) {
	t.Helper()
	tool(t, "nbdkit")
	sock := filepath.Join(socketDir(t), "s")
	startTool(t, exec.Command("nbdkit", append([]string{"-f", "-U", sock}, args...)...), sock)
	return unixURI(sock, "")
}

func exercise(t *testing.T, c *Client) {
	t.Helper()
	size := c.Size()
	want := make([]byte, size)
	if _, err := c.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	for i, r := range [][2]int64{{0, 4096}, {8192, 1 << 20}, {size - 4096, 4096}, {4096, 512 << 10}} {
		p := bytes.Repeat([]byte{byte(i + 1)}, int(r[1]))
		copy(want[r[0]:], p)
		if _, err := c.WriteContext(t.Context(), p, r[0], FUA&Flags(i&1)); err != nil {
			t.Fatal(err)
		}
	}
	clear(want[16384 : 16384+65536])
	if err := c.Zero(16384, 65536, NoHole); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.Cache(0, size), c.Flush(), c.Trim(0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("reads something else than was written, or %v", err)
	}
	var sum int64
	for off := int64(0); off < size; {
		exts, err := c.Extents(nil, off, size-off, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range exts {
			if e.Zero && bytes.ContainsFunc(got[off:off+e.Len], func(r rune) bool { return r != 0 }) {
				t.Errorf("%d bytes at %d are said to be zero", e.Len, off)
			}
			off, sum = off+e.Len, sum+e.Len
		}
	}
	if sum != size {
		t.Errorf("extents have %d bytes of %d", sum, size)
	}
}

func TestClientOfNbdkit(t *testing.T) {
	for _, args := range []string{
		"memory 4M",
		"--no-sr memory 4M",
		"--filter=delay memory 4M delay-read=1ms delay-write=1ms",
		"--filter=cow --filter=cache memory 4M",
		"--filter=fua memory 4M fuamode=emulate",
		"--filter=nozero memory 4M",
		"--filter=noextents --filter=nocache memory 4M",
		"--filter=blocksize-policy memory 4M blocksize-minimum=4096 blocksize-maximum=65536 blocksize-error-policy=error",
		"--mask-handshake=0 memory 4M", // old newstyle options only, if at all
	} {
		t.Run(args, func(t *testing.T) {
			uri := startNbdkit(t, strings.Fields(args)...)
			c, err := Dial(t.Context(), uri, Options{Timeout: 20 * time.Second})
			if strings.Contains(args, "mask") {
				if !errors.Is(err, errors.ErrUnsupported) {
					t.Errorf("a server of the old form: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			exercise(t, c)
		})
	}
	t.Run("file", func(t *testing.T) {
		file, _ := imageFile(t, 4<<20)
		exercise(t, dialTest(t, startNbdkit(t, "file", file)))
		// The same through a server that forwards.
		far := dialTest(t, startNbdkit(t, "file", file))
		exercise(t, dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: far}}}), "")))
	})
	t.Run("error", func(t *testing.T) {
		c := dialTest(t, startNbdkit(t, "--filter=error", "memory", "4M", "error-pread=ENOSPC", "error-pread-rate=100%"))
		var e *Error
		if _, err := c.ReadAt(make([]byte, 100), 77); !errors.As(err, &e) || e.Errno != syscall.ENOSPC || e.Off != 77 || e.Op != "read" {
			t.Errorf("%v, want ENOSPC of a read at 77", err)
		}
		if _, err := c.WriteAt(make([]byte, 100), 77); err != nil {
			t.Error(err)
		}
	})
	t.Run("slow", func(t *testing.T) {
		uri := startNbdkit(t, "--filter=delay", "memory", "4M", "delay-read=3")
		c, err := Dial(t.Context(), uri, Options{Timeout: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.ReadAt(make([]byte, 100), 0); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v, want deadline exceeded", err)
		}
		if _, err := c.WriteAt(make([]byte, 100), 0); err != nil {
			t.Errorf("a write beside a slow read: %v", err)
		}
	})
	t.Run("name", func(t *testing.T) {
		uri := startNbdkit(t, "info", "mode=exportname")
		c := dialTest(t, strings.Replace(uri, "///", "///some%20name%3F", 1))
		b := make([]byte, c.Size())
		if _, err := c.ReadAt(b, 0); err != nil || string(b) != "some name?" {
			t.Errorf("export's name arrived as %q, %v", b, err)
		}
	})
}

func TestClientOfQemuNbd(t *testing.T) {
	tool(t, "qemu-nbd", "qemu-img")
	dir := t.TempDir()
	file, content := imageFile(t, 4<<20)
	qcow := filepath.Join(dir, "qcow2")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", file, qcow)
	sock := filepath.Join(socketDir(t), "s")
	startTool(t, exec.Command("qemu-nbd", "-f", "qcow2", "-t", "-e", "4", "--discard=unmap", "-x", "the disk", "-D", "text", "-k", sock, qcow), sock)
	c := dialTest(t, unixURI(sock, "the disk"))
	if in := c.Info(); in.Description != "text" || !in.Structured || !in.Extents {
		t.Errorf("info is %+v", in)
	}
	exts, err := c.Extents(nil, 0, c.Size(), 100)
	if err != nil || len(exts) < 3 || exts[0].Zero || !exts[1].Hole || !exts[1].Zero || exts[0].Len != 1<<20 || exts[1].Len != 1<<20 {
		t.Errorf("Extents: %+v, %v", exts, err)
	}
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("content differs, or %v", err)
	}
	exercise(t, c)
	list, err := List(t.Context(), unixURI(sock, ""), Options{})
	if err != nil || len(list) != 1 || list[0].Name != "the disk" {
		t.Errorf("List: %+v, %v", list, err)
	}
}

// A server that was killed comes back on the same socket: QEMU's client, which is told to wait for it, goes on.
func TestRestart(t *testing.T) {
	tool(t, "qemu-img")
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(socketDir(t), "s")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	lnFile, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer lnFile.Close()
	start := func() *exec.Cmd {
		cmd := exec.Command("/proc/self/exe", "-", file)
		cmd.Env = append(os.Environ(), serveEnv+"=1")
		cmd.ExtraFiles = []*os.File{lnFile}
		startTool(t, cmd, sock)
		return cmd
	}
	first := start()
	// 40 MiB over an image of 1 MiB, pattern 17: all of it is written many times.
	q := exec.Command("qemu-img", "bench", "-w", "-c", "10000", "-d", "4", "-s", "4096", "--pattern=17", "--flush-interval=64",
		"--image-opts", "driver=raw,file.driver=nbd,file.server.type=unix,file.server.path="+sock+",file.reconnect-delay=20")
	var out bytes.Buffer
	q.Stdout, q.Stderr = &out, &out
	if err := q.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if got, err := os.ReadFile(file); err != nil || got[4096] == 17 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the first writes did not arrive")
		}
	}
	first.Process.Kill()
	first.Wait()
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	start()
	if err := q.Wait(); err != nil {
		t.Fatalf("QEMU's client saw the server's death: %v\n%s", err, &out)
	}
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{17}, 1<<20)) {
		t.Errorf("writes are missing behind the restart, or %v", err)
	}
}

// An image that a server writes is one that QEMU does not write, and the other way round.
func TestLock(t *testing.T) {
	tool(t, "qemu-img", "qemu-nbd")
	file, _ := imageFile(t, 1<<20)
	d := openTest(t, file, false)
	if err := d.Lock(); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("qemu-img", "bench", "-w", "-c", "1", "-f", "raw", file).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "lock") {
		t.Errorf("QEMU writes to what is locked: %v, %s", err, out)
	}
	if err := openTest(t, file, false).Lock(); !errors.Is(err, block.ErrLocked) {
		t.Errorf("a second Lock: %v", err)
	}
	d.Close()
	sock := filepath.Join(socketDir(t), "s")
	startTool(t, exec.Command("qemu-nbd", "-f", "raw", "-t", "-e", "4", "-k", sock, file), sock)
	if err := openTest(t, file, false).Lock(); !errors.Is(err, block.ErrLocked) {
		t.Errorf("Lock of what QEMU writes: %v", err)
	}
	if err := openTest(t, file, true).Lock(); err != nil {
		t.Errorf("Lock of what is only read: %v", err)
	}
}
