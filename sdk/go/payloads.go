package antiphon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"time"

	"google.golang.org/grpc"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	chunkBytes    = 1 << 20
	slowestUpload = 1 << 20 // bytes a second that an upload is given at least
)

// UploadPayload keeps a value of any size and returns what to send in its place; an empty media type means JSON.
func (c *Client) UploadPayload(ctx context.Context, data []byte, mediaType string) (*Payload, error) {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	limit := 30*time.Second + time.Duration(len(data)/slowestUpload)*time.Second
	answer, err := unary(ctx, c.connection, limit,
		func(g *generation) func(context.Context, []byte, ...grpc.CallOption) (*antiphonv1.UploadPayloadResponse, error) {
			return func(ctx context.Context, data []byte, _ ...grpc.CallOption) (*antiphonv1.UploadPayloadResponse, error) {
				return upload(ctx, payloads(g), digest, data)
			}
		}, data)
	if err != nil {
		return nil, err
	}
	return &Payload{Content: &antiphonv1.Payload_Blob{Blob: answer.GetBlob()}, MediaType: mediaType}, nil
}

func upload(
	ctx context.Context, to antiphonv1.PayloadServiceClient, digest string, data []byte,
) (*antiphonv1.UploadPayloadResponse, error) {
	stream, err := to.UploadPayload(ctx)
	if err != nil {
		return nil, err
	}
	for first := true; first || len(data) > 0; first = false {
		size := min(len(data), chunkBytes)
		message := &antiphonv1.UploadPayloadRequest{Chunk: data[:size]}
		if first {
			message.Digest = digest
		}
		data = data[size:]
		if err := stream.Send(message); err == io.EOF {
			break // refused; receiving tells why
		} else if err != nil {
			return nil, err
		}
	}
	return stream.CloseAndRecv()
}

// DownloadPayload returns the bytes of a payload, inline or kept by reference; what was kept is compared with its digest. Reasons:
// PayloadNotFound, PayloadDigestMismatch.
func (c *Client) DownloadPayload(ctx context.Context, payload *Payload) ([]byte, error) {
	if payload.GetBlob() == nil {
		return payload.GetInline(), nil
	}
	digest := payload.GetBlob().GetDigest()
	var data []byte
	request := &antiphonv1.DownloadPayloadRequest{Digest: digest}
	messages := resume(ctx, c.connection, c.patience, request,
		func(ctx context.Context, g *generation) (grpc.ServerStreamingClient[antiphonv1.DownloadPayloadResponse], error) {
			request.Offset = uint64(len(data))
			return payloads(g).DownloadPayload(ctx, request)
		})
	for message, err := range messages {
		if err != nil {
			return nil, err
		}
		data = append(data, message.GetChunk()...)
	}
	sum := sha256.Sum256(data)
	if actual := hex.EncodeToString(sum[:]); actual != digest {
		err := newError(PayloadDigestMismatch, "the content has digest "+actual+", asked for was "+digest)
		err.Metadata = map[string]string{"expected": digest, "actual": actual}
		return nil, err
	}
	return data, nil
}
