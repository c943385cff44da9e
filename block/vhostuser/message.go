package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// request is the type of a message from the front end.
type request uint32

// The requests, with the numbers of docs/interop/vhost-user.rst.
const (
	getFeatures         request = 1
	setFeatures         request = 2
	setOwner            request = 3
	resetOwner          request = 4
	setMemTable         request = 5
	setVringNum         request = 8
	setVringAddr        request = 9
	setVringBase        request = 10
	getVringBase        request = 11
	setVringKick        request = 12
	setVringCall        request = 13
	setVringErr         request = 14
	getProtocolFeatures request = 15
	setProtocolFeatures request = 16
	getQueueNum         request = 17
	setVringEnable      request = 18
	getConfig           request = 24
	setConfig           request = 25
	getInflightFD       request = 31
	setInflightFD       request = 32
	resetDevice         request = 34
	getMaxMemSlots      request = 36
	addMemReg           request = 37
	remMemReg           request = 38
	setStatus           request = 39
	getStatus           request = 40
)

var requestNames = map[request]string{
	getFeatures: "GET_FEATURES", setFeatures: "SET_FEATURES", setOwner: "SET_OWNER", resetOwner: "RESET_OWNER",
	setMemTable: "SET_MEM_TABLE", setVringNum: "SET_VRING_NUM", setVringAddr: "SET_VRING_ADDR",
	setVringBase: "SET_VRING_BASE", getVringBase: "GET_VRING_BASE", setVringKick: "SET_VRING_KICK",
	setVringCall: "SET_VRING_CALL", setVringErr: "SET_VRING_ERR", getProtocolFeatures: "GET_PROTOCOL_FEATURES",
	setProtocolFeatures: "SET_PROTOCOL_FEATURES", getQueueNum: "GET_QUEUE_NUM", setVringEnable: "SET_VRING_ENABLE",
	getConfig: "GET_CONFIG", setConfig: "SET_CONFIG", getInflightFD: "GET_INFLIGHT_FD", setInflightFD: "SET_INFLIGHT_FD",
	resetDevice: "RESET_DEVICE", getMaxMemSlots: "GET_MAX_MEM_SLOTS", addMemReg: "ADD_MEM_REG", remMemReg: "REM_MEM_REG",
	setStatus: "SET_STATUS", getStatus: "GET_STATUS",
}

func (r request) String() string {
	if s, ok := requestNames[r]; ok {
		return s
	}
	return "request " + strconv.FormatUint(uint64(r), 10)
}

// Flags of a message.
const (
	versionMask   = 3
	version       = 1
	flagReply     = 1 << 2
	flagNeedReply = 1 << 3
)

const (
	headerSize = 12
	maxPayload = 4096 // the largest is a whole configuration space
	maxFDs     = 8    // VHOST_MEMORY_BASELINE_NREGIONS
)

// message is one request of the front end.
type message struct {
	req   request
	flags uint32
	data  []byte // the payload; of the connection's buffer
	// fds are kept as numbers: an os.File would change the mode of an eventfd that it shares with the front end.
	fds []int
}

// ErrProtocol says that the front end broke the protocol; the connection is over.
var ErrProtocol = errors.New("vhost-user: protocol violated")

// closeFDs closes the descriptors that nobody took.
func (m *message) closeFDs() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// fd takes the one descriptor that the message must bring.
func (m *message) fd() (int, error) {
	if len(m.fds) != 1 {
		return -1, fmt.Errorf("%w: %v with %d descriptors", ErrProtocol, m.req, len(m.fds))
	}
	fd := m.fds[0]
	m.fds = nil
	return fd, nil
}

// file takes the one descriptor, which is that of memory.
func (m *message) file() (*os.File, error) {
	fd, err := m.fd()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "vhost-user memory"), nil
}

// u64 reads the number that is the payload.
func (m *message) u64() (uint64, error) {
	if len(m.data) != 8 {
		return 0, m.badSize()
	}
	return binary.LittleEndian.Uint64(m.data), nil
}

// state reads a vring state: an index and a number.
func (m *message) state() (index, num uint32, err error) {
	if len(m.data) != 8 {
		return 0, 0, m.badSize()
	}
	return binary.LittleEndian.Uint32(m.data), binary.LittleEndian.Uint32(m.data[4:]), nil
}

func (m *message) badSize() error {
	return fmt.Errorf("%w: %v with a payload of %d bytes", ErrProtocol, m.req, len(m.data))
}

// wire is the connection's two directions. Numbers are in the host's byte order, which is little endian wherever this is
// compiled to run a guest.
type wire struct {
	c   *net.UnixConn
	buf [headerSize + maxPayload]byte
	oob [256]byte // room for maxFDs descriptors, and for more to be noticed
	out [headerSize + maxPayload]byte
}

// read waits for the next message, which is valid until the next call. io.EOF only between messages.
func (w *wire) read() (message, error) {
	var m message
	if err := w.fill(w.buf[:headerSize], &m); err != nil {
		m.closeFDs()
		return message{}, err
	}
	m.req = request(binary.LittleEndian.Uint32(w.buf[:]))
	m.flags = binary.LittleEndian.Uint32(w.buf[4:])
	size := binary.LittleEndian.Uint32(w.buf[8:])
	if m.flags&versionMask != version || m.flags&flagReply != 0 || size > maxPayload {
		m.closeFDs()
		return message{}, fmt.Errorf("%w: %v with flags %#x and %d bytes", ErrProtocol, m.req, m.flags, size)
	}
	m.data = w.buf[headerSize : headerSize+size]
	if err := w.fill(m.data, &m); err != nil {
		m.closeFDs()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return message{}, err
	}
	return m, nil
}

// fill reads all of p and keeps the descriptors that come along.
func (w *wire) fill(p []byte, m *message) error {
	for done := 0; done < len(p); {
		n, oobn, flags, _, err := w.c.ReadMsgUnix(p[done:], w.oob[:])
		if oobn > 0 {
			if err := m.take(w.oob[:oobn]); err != nil {
				return err
			}
		}
		switch {
		case flags&unix.MSG_CTRUNC != 0 || len(m.fds) > maxFDs:
			return fmt.Errorf("%w: more than %d descriptors in a message", ErrProtocol, maxFDs)
		case n > 0:
			done += n
		case err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET):
			if done > 0 {
				return io.ErrUnexpectedEOF
			}
			return io.EOF
		default:
			return err
		}
	}
	return nil
}

// take keeps the descriptors in a control message.
func (m *message) take(oob []byte) error {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("%w: control message: %w", ErrProtocol, err)
	}
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			continue // of another kind, which holds nothing
		}
		m.fds = append(m.fds, fds...)
	}
	return nil
}

// reply answers a request with a payload, and a descriptor if f is not nil.
func (w *wire) reply(r request, payload []byte, f *os.File) error {
	binary.LittleEndian.PutUint32(w.out[:], uint32(r))
	binary.LittleEndian.PutUint32(w.out[4:], version|flagReply)
	binary.LittleEndian.PutUint32(w.out[8:], uint32(len(payload)))
	n := headerSize + copy(w.out[headerSize:], payload)
	var oob []byte
	if f != nil {
		oob = unix.UnixRights(int(f.Fd()))
	}
	_, _, err := w.c.WriteMsgUnix(w.out[:n], oob, nil)
	return err
}

func (w *wire) replyU64(r request, v uint64) error {
	return w.reply(r, binary.LittleEndian.AppendUint64(nil, v), nil)
}
