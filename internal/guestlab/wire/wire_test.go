package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"reflect"
	"testing"
)

func frames(t *testing.T, list ...Frame) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, f := range list {
		if err := WriteFrame(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestFrames(t *testing.T) {
	one := Frame{Call, 1, []byte("first")}
	two := Frame{Result, 1 << 63, []byte{}}
	stream := frames(t, one, two)
	damagedPayload := append([]byte{}, stream...)
	damagedPayload[headerSize] ^= 1
	damagedHeader := append([]byte{}, stream...)
	damagedHeader[17] ^= 0x40 // the length
	tests := []struct {
		name    string
		stream  []byte
		want    []Frame
		damaged int
	}{
		{"whole", stream, []Frame{one, two}, 0},
		{"after the tail of an older frame", append([]byte("vsvsLbrest of something longer than a header"), stream...), []Frame{one, two}, 0},
		{"payload damaged", damagedPayload, []Frame{two}, 1},
		{"header damaged", damagedHeader, []Frame{two}, 0},
		{"cut", stream[:len(stream)-1], []Frame{one}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := bufio.NewReader(bytes.NewReader(tt.stream))
			var got []Frame
			damaged := 0
			for {
				f, err := ReadFrame(r)
				if errors.Is(err, ErrDamaged) {
					damaged++
					continue
				}
				if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, f)
			}
			if !reflect.DeepEqual(got, tt.want) || damaged != tt.damaged {
				t.Errorf("got %v and %d damaged, want %v and %d", got, damaged, tt.want, tt.damaged)
			}
		})
	}
}

func TestReply(t *testing.T) {
	for _, want := range []Reply{{0, []byte{}, []byte{}}, {255, []byte("out\x00\n"), []byte("err")}, {-1, []byte("x"), []byte{}}} {
		got, err := DecodeReply(want.Encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, 7), {0, 0, 0, 0, 1, 0, 0, 0}, {0, 0, 0, 0, 255, 255, 255, 255, 1}} {
		if r, err := DecodeReply(bad); err == nil {
			t.Errorf("%v decoded to %v", bad, r)
		}
	}
}
