import CoreGraphics
import Foundation
import onnxruntime_objc  // with the Swift package: OnnxRuntimeBindings

/// An exported network. `height` and `width` are those of `--size`.
final class Segmenter {
    private static let padding: [UInt8] = [124, 116, 104]  // the mean of the training images
    private let environment: ORTEnv
    private let session: ORTSession
    private let height: Int
    private let width: Int

    init(modelPath: String, height: Int, width: Int) throws {
        environment = try ORTEnv(loggingLevel: .warning)
        session = try ORTSession(env: environment, modelPath: modelPath, sessionOptions: nil)
        (self.height, self.width) = (height, width)
    }

    /// Class of every pixel of an image, row by row.
    func labels(of image: CGImage) throws -> [Int32] {
        let factor = min(Double(height) / Double(image.height), Double(width) / Double(image.width))
        let rows = max(1, min(height, Int(Double(image.height) * factor + 0.5)))
        let columns = max(1, min(width, Int(Double(image.width) * factor + 0.5)))
        var colors = [UInt8](repeating: 0, count: rows * columns * 4)  // red, green, blue, unused
        colors.withUnsafeMutableBytes { bytes in
            let context = CGContext(
                data: bytes.baseAddress, width: columns, height: rows, bitsPerComponent: 8,
                bytesPerRow: columns * 4, space: CGColorSpace(name: CGColorSpace.sRGB)!,
                bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            context?.draw(image, in: CGRect(x: 0, y: 0, width: columns, height: rows))
        }
        let pixels = NSMutableData(length: height * width * 3)!
        let target = pixels.mutableBytes.assumingMemoryBound(to: UInt8.self)
        for y in 0..<height {
            for x in 0..<width {
                for channel in 0..<3 {
                    target[(y * width + x) * 3 + channel] =
                        y < rows && x < columns
                        ? colors[(y * columns + x) * 4 + channel] : Self.padding[channel]
                }
            }
        }
        let shape = [1, height, width, 3].map { NSNumber(value: $0) }
        let input = try ORTValue(tensorData: pixels, elementType: .uInt8, shape: shape)
        let outputs = try session.run(
            withInputs: ["image": input], outputNames: ["logits"], runOptions: nil)
        let output = outputs["logits"]!
        let grid = try output.tensorTypeAndShapeInfo().shape.map { $0.int32Value }
        let sizes = [
            grid[1], grid[2], grid[3], Int32(height), Int32(width), Int32(rows), Int32(columns),
            Int32(image.height), Int32(image.width),
        ]
        var labels = [Int32](repeating: 0, count: image.height * image.width)
        let logits = try output.tensorData() as Data
        let done = logits.withUnsafeBytes {
            upsample_argmax($0.bindMemory(to: Float.self).baseAddress!, sizes, &labels)
        }
        guard done else { throw CocoaError(.coderInvalidValue) }
        return labels
    }
}
