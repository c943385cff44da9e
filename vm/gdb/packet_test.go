package gdb

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"vmscope/vm"
)

// script is a stub that says what it says, whatever it is asked.
type script struct {
	net.Conn
	io.Reader
}

func (s script) Read(p []byte) (int, error)    { return s.Reader.Read(p) }
func (s script) Write(p []byte) (int, error)   { return len(p), nil }
func (s script) Close() error                  { return nil }
func (s script) SetDeadline(time.Time) error   { return nil }
func scripted(says []byte) *conn               { return newConn(script{Reader: bytes.NewReader(says)}) }
func session1(says []byte, chunk int) *session { return &session{conn: scripted(says), chunk: chunk} }

func TestReceive(t *testing.T) {
	for _, c := range []struct{ says, want string }{
		{"$OK#9a", "OK"},
		{"+++$#00", ""},
		{"$0* #7a", "0000"},    // the manual's own example: 0 and three more
		{"$a}\x03b#43", "a#b"}, // 0x23 escaped
	} {
		if got, err := scripted([]byte(c.says)).receive(); string(got) != c.want || err != nil {
			t.Errorf("%q: %q, %v", c.says, got, err)
		}
	}
	for _, says := range []string{
		"", "+", "SSH-2.0-OpenSSH_9.2\r\n", "$OK#9b", "$OK#zz", "$OK", "$*\x20#4a", "$}", "$a*", "$a*\x1f#aa",
		strings.Repeat("+", maxSkipped+2) + "$OK#9a",
		"$" + strings.Repeat("a", maxPacket+1) + "#00",
		"$a" + strings.Repeat("*~", maxPacket/90) + "#00",
	} {
		if got, err := scripted([]byte(says)).receive(); err == nil {
			t.Errorf("%.40q is received as %.40q", says, got)
		}
	}
}

func TestShortAnswer(t *testing.T) {
	p := make([]byte, 4)
	for _, says := range []string{"$E14#aa", "$00#60", "$0000000000#e0", "$zzzzzzzz#d0"} {
		if n, err := session1([]byte(says), 4).read(p, 0); n != 0 || !errors.Is(err, errProtocol) {
			t.Errorf("%q: %d, %v", says, n, err)
		}
	}
}

// FuzzStub has a stub say anything to all that is asked: nothing may hang or grow without bound, and what is read is as long
// as it is said to be.
func FuzzStub(f *testing.F) {
	f.Add([]byte("$T02thread:01;#04+$PacketSize=1000;QStartNoAckMode+#05$OK#9a$OK#9a"))
	f.Add([]byte("$l<?xml version=\"1.0\"?><target><architecture>i386:x86-64</architecture><feature><reg name=\"cr3\" bitsize=\"64\"/></feature></target>#00"))
	f.Add([]byte("$m1,2#00$l#6c$OK#9a$0011#c2"))
	f.Add([]byte("$O61#e0$OK#9a"))
	f.Fuzz(func(t *testing.T, says []byte) {
		s := session1(says, 0)
		if s.setUp() == nil && (s.chunk < 64 || s.chunk > maxPacket/2) {
			t.Fatalf("chunks of %d bytes", s.chunk)
		}
		for _, ack := range []bool{false, true} {
			p := make([]byte, 300)
			s := session1(says, 100)
			if s.ack = ack; s.ack {
				s.stopped = true
			}
			if n, err := s.read(p, 0x1000); n > len(p) || (n < len(p)) != (err != nil) {
				t.Fatalf("read %d, %v", n, err)
			}
			if out, err := session1(says, 100).monitor("info mtree -f"); err == nil && len(out) > len(says)*97 {
				t.Fatalf("%d bytes of %d", len(out), len(says))
			}
			if r, err := session1(says, 100).registers(); (err == nil) == (r == nil) && len(r) > 0 {
				t.Fatalf("%d, %v", len(r), err)
			}
			m := &machine{}
			if s := session1(says, 100); true {
				s.physical = true
				if err := m.ask(s); (err == nil) != (len(m.ranges) > 0) {
					t.Fatalf("%v, %v", m.ranges, err)
				}
			}
		}
	})
}

func TestPick(t *testing.T) {
	desc := []register{{"rax", 0, 8}, {"rip", 8, 8}, {"eflags", 16, 4}, {"cs", 20, 4}, {"cr3", 24, 8}, {"cr4", 32, 8}, {"st0", 40, 10}, {"out", 48, 8}}
	b := make([]byte, 50)
	for i := range b {
		b[i] = byte(i)
	}
	want := vm.Registers{RIP: 0x0f0e0d0c0b0a0908, RFLAGS: 0x13121110, CS: 0x1514, CR3: 0x1f1e1d1c1b1a1918, CR4: 0x2726252423222120, Valid: true}
	want.General[0] = 0x0706050403020100
	if got := pick(desc, b); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := pick(desc, nil); got != (vm.Registers{}) {
		t.Errorf("nothing is %+v", got)
	}
}
