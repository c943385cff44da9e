package vmscope

import (
	"context"
	"errors"
	"fmt"
)

func openMachineDisks(_ context.Context, target string) ([]*Disk, error) {
	return nil, fmt.Errorf("disks of %q: %w", target, errors.ErrUnsupported)
}
