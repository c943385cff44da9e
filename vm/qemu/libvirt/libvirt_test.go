package libvirt

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/internal/binread"
)

// call is what a daemon was asked.
type call struct {
	in        program
	procedure uint32
	args      *binread.Reader
	file      *os.File
}

// reply is what it answers; refused, if not 0, is the code of an error.
type reply struct {
	refused uint32
	payload []byte
	before  []byte // bytes that come first
}

// packet is an answer as it goes over the line.
func packet(in program, procedure, kind, serial, status uint32, payload []byte) []byte {
	var b []byte
	for _, v := range []uint32{uint32(headerLen + len(payload)), uint32(in), 1, procedure, kind, serial, status} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return append(b, payload...)
}

func refused(code uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, code)
	b = binary.BigEndian.AppendUint32(b, 10)
	b = binary.BigEndian.AppendUint32(b, 1)
	return binary.BigEndian.AppendUint32(appendText(b, "no, never"), 2)
}

// daemon answers as a daemon of libvirt does, to one client after the other.
func daemon(t *testing.T, answer func(call) reply) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { ln.Close(); <-done })
	go func() {
		defer close(done)
		for {
			conn, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			serve(conn, answer)
			conn.Close()
		}
	}()
	return socket
}

func serve(conn *net.UnixConn, answer func(call) reply) {
	for {
		var h [headerLen]byte
		if _, err := io.ReadFull(conn, h[:]); err != nil {
			return
		}
		f := binread.NewBig("call", h[:])
		length, in, _, procedure, kind, serial, _ := f.U32(), f.U32(), f.U32(), f.U32(), f.U32(), f.U32(), f.U32()
		b := make([]byte, length-headerLen)
		if _, err := io.ReadFull(conn, b); err != nil {
			return
		}
		c := call{in: program(in), procedure: procedure, args: binread.NewBig("arguments", b)}
		if kind == typeCallFiles {
			oob := make([]byte, 64)
			var one [1]byte
			_, n, _, _, err := conn.ReadMsgUnix(one[:], oob)
			if err != nil {
				return
			}
			messages, _ := unix.ParseSocketControlMessage(oob[:n])
			for _, m := range messages {
				fds, _ := unix.ParseUnixRights(&m)
				c.file = os.NewFile(uintptr(fds[0]), "passed")
			}
			if c.args.U32() != 1 || c.file == nil {
				return
			}
		}
		r := answer(c)
		conn.Write(r.before)
		if r.refused != 0 {
			conn.Write(packet(c.in, procedure, typeReply, serial, 1, refused(r.refused)))
		} else {
			conn.Write(packet(c.in, procedure, typeReply, serial, statusOK, r.payload))
		}
	}
}

// friendly answers what Dial asks, and the rest by more.
func friendly(more func(call) reply) func(call) reply {
	return func(c call) reply {
		switch {
		case c.in == remote && c.procedure == procAuthList:
			return reply{payload: make([]byte, 8)} // one, which is none
		case c.in == remote && c.procedure == procOpen:
			return reply{}
		}
		return more(c)
	}
}

func someDomain(id int32) []byte {
	b := append(appendText(nil, "web1"), "0123456789abcdef"...)
	return binary.BigEndian.AppendUint32(b, uint32(id))
}

func TestConn(t *testing.T) {
	event := packet(qemu, 6, 2, 0, statusOK, make([]byte, 100)) // of somebody else
	socket := daemon(t, friendly(func(c call) reply {
		switch {
		case c.in == remote && c.procedure == procLookupName && text(c.args) == "web1":
			return reply{payload: someDomain(7), before: event}
		case c.in == remote && c.procedure == procLookupID && c.args.U32() == 7:
			return reply{payload: someDomain(7)}
		case c.in == remote && c.procedure == procLookupUUID && string(c.args.Bytes(16)) == "0123456789abcdef":
			return reply{payload: someDomain(7)}
		case c.in == remote && c.procedure == procListDomains:
			return reply{payload: append([]byte{0, 0, 0, 2}, append(someDomain(7), someDomain(-1)...)...)}
		case c.in == qemu && c.procedure == procCommand && domain(c.args).ID == 7:
			return reply{payload: appendText(nil, "ran "+text(c.args))}
		case c.in == qemu && c.procedure == procCommandFiles && domain(c.args).ID == 7:
			fmt.Fprint(c.file, "passed")
			c.file.Close()
			return reply{payload: appendText(nil, "{}")}
		}
		return reply{refused: codeNoDomain}
	}))
	c, err := Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.UID != os.Geteuid() {
		t.Errorf("the daemon's user is %d", c.UID)
	}
	for _, name := range []string{"web1", "7", "30313233-3435-3637-3839-616263646566"} {
		if d, ok, err := c.Lookup(t.Context(), name); d.Name != "web1" || d.ID != 7 || !ok || err != nil {
			t.Errorf("%s: %+v, %v, %v", name, d, ok, err)
		}
	}
	for _, name := range []string{"", "web2", "8"} {
		if d, ok, err := c.Lookup(t.Context(), name); ok || err != nil {
			t.Errorf("%s: %+v, %v", name, d, err)
		}
	}
	all, err := c.Domains(t.Context())
	if len(all) != 2 || all[0].ID != 7 || all[1].ID != -1 || err != nil {
		t.Fatalf("%+v, %v", all, err)
	}
	if s, err := c.Command(t.Context(), all[0], "this", nil); s != "ran this" || err != nil {
		t.Error(s, err)
	}
	if _, err := c.Command(t.Context(), all[1], "this", nil); err == nil {
		t.Error("a domain that does not run ran a command")
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := c.Command(t.Context(), all[0], "this", out); err != nil {
		t.Error(err)
	}
	out.Close()
	if b, err := io.ReadAll(in); string(b) != "passed" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestWrongDaemons: each way in which there is no answer is told from the others.
func TestWrongDaemons(t *testing.T) {
	if _, err := Dial(t.Context(), filepath.Join(t.TempDir(), "nobody")); !errors.Is(err, ErrNoDaemon) {
		t.Error(err)
	}
	if _, err := DialIn(t.Context(), t.TempDir()); !errors.Is(err, ErrNoDaemon) {
		t.Error(err)
	}
	ok := friendly(func(call) reply { return reply{} })
	for _, c := range []struct {
		name   string
		answer func(call) reply
		want   error
		words  string
	}{
		{"password", func(call) reply { return reply{payload: []byte{0, 0, 0, 1, 0, 0, 0, 1}} }, ErrRefused, "SASL"},
		{"polkit", func(c call) reply {
			if c.procedure == procAuthPolkit {
				return reply{refused: codeAuthUnavailable}
			}
			return reply{payload: []byte{0, 0, 0, 1, 0, 0, 0, 2}}
		}, ErrRefused, "group libvirt"},
		{"no driver", func(c call) reply {
			if c.procedure == procOpen {
				return reply{refused: 5}
			}
			return ok(c)
		}, nil, "no, never (error 5)"},
		{"cut off", func(call) reply { return reply{before: make([]byte, 3)} }, nil, "packet of"},
		{"too short", func(call) reply { return reply{before: make([]byte, headerLen)} }, nil, "packet of 0 bytes"},
		{"too long", func(call) reply { return reply{before: bytes.Repeat([]byte{0xff}, headerLen)} }, nil, "packet of 4294967295 bytes"},
		{"events for ever", func(call) reply {
			return reply{before: bytes.Repeat(packet(qemu, 6, 2, 0, statusOK, nil), skipMax)}
		}, nil, "no answer"},
	} {
		_, err := Dial(t.Context(), daemon(t, c.answer))
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	c, err := Dial(t.Context(), daemon(t, friendly(func(call) reply { return reply{refused: codeDenied} })))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Command(t.Context(), Domain{}, "", nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "-ro") {
		t.Error(err)
	}
}

// TestHangs: a daemon that takes calls and never answers costs no more time than it is given.
func TestHangs(t *testing.T) {
	hang := make(chan struct{})
	socket := daemon(t, func(call) reply { <-hang; return reply{} })
	defer close(hang)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, socket); !errors.Is(err, ErrNoAnswer) {
		t.Error(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := Dial(ctx, socket); !errors.Is(err, ErrNoAnswer) { // in the queue of those who wait
		t.Error(err)
	}
}

func TestDirs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	if all := Dirs(4711); len(all) != 0 && all[0] != "/run/libvirt" || len(all) > 1 {
		t.Errorf("%q", all)
	}
	mine := filepath.Join(dir, "libvirt")
	if err := os.Mkdir(mine, 0o700); err != nil {
		t.Fatal(err)
	}
	all := Dirs(4711)
	if len(all) == 0 || all[len(all)-1] != mine {
		t.Errorf("%q", all)
	}
}

// FuzzAnswer gives what any daemon could send.
func FuzzAnswer(f *testing.F) {
	f.Add(packet(remote, procAuthList, typeReply, 1, statusOK, make([]byte, 8)))
	f.Add(packet(remote, procAuthList, typeReply, 1, 1, refused(codeNoDomain)))
	f.Add(append(packet(qemu, 6, 2, 0, statusOK, nil), packet(remote, procAuthList, typeReply, 1, statusOK, append([]byte{0, 0, 0, 1}, someDomain(1)...))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &Conn{r: bufio.NewReader(bytes.NewReader(b)), serial: 1}
		payload, _, err := c.answer(remote, procAuthList)
		if err != nil {
			return
		}
		if len(payload) > len(b) {
			t.Fatalf("%d bytes out of %d", len(payload), len(b))
		}
		r := func() *binread.Reader { return binread.NewBig("answer", payload) }
		if ways, err := authWays(r()); err == nil && 4*len(ways) > len(payload) {
			t.Errorf("%d ways out of %d bytes", len(ways), len(payload))
		}
		if all, err := domains(r()); err == nil && 24*len(all) > len(payload) {
			t.Errorf("%d domains out of %d bytes", len(all), len(payload))
		}
		if refusal(r()) == nil {
			t.Error("a refusal that is none")
		}
		if s := text(r()); len(s) > len(payload) {
			t.Errorf("a string of %d bytes out of %d", len(s), len(payload))
		}
	})
}
