package gdb

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

const (
	// maxPacket bounds a packet; stubs send a few KiB.
	maxPacket = 1 << 20
	// patience is how long a stub may take to answer.
	patience = 10 * time.Second
	// maxSkipped bounds the acknowledgements before a packet.
	maxSkipped = 1 << 16
)

// errProtocol says that the other side does not speak the protocol.
var errProtocol = errors.New("this is no GDB stub, or the connection is broken")

// conn exchanges packets (GDB manual, appendix E "Remote Protocol", Overview):
// "$data#checksum".
type conn struct {
	net.Conn
	r     *bufio.Reader
	ack   bool      // packets are acknowledged
	until time.Time // when what is under way has failed
}

func newConn(c net.Conn) *conn { return &conn{Conn: c, r: bufio.NewReaderSize(c, 1<<16), ack: true} }

// send sends packets, which need no escapes: they are text without $, #, } and *.
func (c *conn) send(packets ...string) error {
	var b strings.Builder
	for _, p := range packets {
		var sum byte
		for i := range len(p) {
			sum += p[i]
		}
		fmt.Fprintf(&b, "$%s#%02x", p, sum)
	}
	c.SetDeadline(c.until)
	_, err := io.WriteString(c.Conn, b.String())
	return err
}

// receive reads the next packet, decoded.
func (c *conn) receive() ([]byte, error) {
	c.SetDeadline(c.until)
	for skipped := 0; ; skipped++ {
		b, err := c.r.ReadByte()
		if err != nil {
			return nil, err
		}
		if b == '$' {
			break
		}
		if b != '+' || skipped > maxSkipped {
			return nil, errProtocol
		}
	}
	var out []byte
	var sum byte
	for {
		b, err := c.r.ReadByte()
		if err != nil {
			return nil, err
		}
		if b == '#' {
			break
		}
		sum += b
		switch b {
		case '}': // the next byte is escaped
			if b, err = c.r.ReadByte(); err != nil {
				return nil, err
			}
			sum += b
			out = append(out, b^0x20)
		case '*': // the byte before is repeated: n-29 times more
			n, err := c.r.ReadByte()
			if err != nil {
				return nil, err
			}
			sum += n
			if len(out) == 0 || n < 32 || n > 126 {
				return nil, errProtocol
			}
			for range n - 29 {
				out = append(out, out[len(out)-1])
			}
		default:
			out = append(out, b)
		}
		if len(out) > maxPacket {
			return nil, errProtocol
		}
	}
	var text [2]byte
	if _, err := io.ReadFull(c.r, text[:]); err != nil {
		return nil, err
	}
	var want [1]byte
	if _, err := hex.Decode(want[:], text[:]); err != nil || want[0] != sum {
		return nil, errProtocol
	}
	if c.ack {
		if _, err := io.WriteString(c.Conn, "+"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ask sends a packet and reads the answer to it.
func (c *conn) ask(packet string) (string, error) {
	if err := c.send(packet); err != nil {
		return "", err
	}
	b, err := c.receive()
	return string(b), err
}

// object reads a whole object of qXfer (target descriptions).
func (c *conn) object(kind, annex string) ([]byte, error) {
	var out []byte
	for len(out) < maxPacket {
		part, err := c.ask(fmt.Sprintf("qXfer:%s:read:%s:%x,%x", kind, annex, len(out), 0x400))
		switch {
		case err != nil:
			return nil, err
		case part == "" || part[0] != 'm' && part[0] != 'l':
			return nil, fmt.Errorf("read %s %q: the stub answers %.40q", kind, annex, part)
		}
		out = append(out, part[1:]...)
		if part[0] == 'l' {
			return out, nil
		}
		if len(part) == 1 {
			break
		}
	}
	return nil, errProtocol
}

// monitor runs a command of the stub's own (qRcmd), which for QEMU is one of its
// human monitor.
func (c *conn) monitor(command string) (string, error) {
	if err := c.send("qRcmd," + hex.EncodeToString([]byte(command))); err != nil {
		return "", err
	}
	var out []byte
	for len(out) < maxPacket {
		b, err := c.receive()
		switch {
		case err != nil:
			return "", err
		case string(b) == "OK":
			return string(out), nil
		case len(b) == 0 || b[0] != 'O':
			return "", fmt.Errorf("monitor command %q: the stub answers %.40q", command, b)
		}
		text, err := hex.DecodeString(string(b[1:]))
		if err != nil {
			return "", errProtocol
		}
		out = append(out, text...)
	}
	return "", errProtocol
}
